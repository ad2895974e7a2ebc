"""`vmgr completion`: the script that completes words in a shell."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

DESCRIPTION = "Print the script that makes your shell complete verbs, options and names."
EXAMPLES = """examples:
  eval "$(vmgr completion bash)"      # in ~/.bashrc
  eval "$(vmgr completion zsh)"       # in ~/.zshrc, after compinit
  vmgr completion fish >~/.config/fish/completions/vmgr.fish"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL")


def execute(options: argparse.Namespace) -> int:
    """Do it."""
    from argcomplete.shell_integration import shellcode

    print(shellcode(["vmgr"], shell=options.shell))
    return 0
