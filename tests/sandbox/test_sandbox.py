"""How programs are started in the sandbox."""

from __future__ import annotations

import sys

from vmgr.spawner import run

WAITS = """
import os, sys
os.read(int(sys.argv[1]), 1)
os.execv(sys.argv[2], sys.argv[2:])
"""
DIES = f"""
import asyncio, os, shutil, signal, sys
from pathlib import Path
from vmgr.sandbox import Need, Sandbox, find_bubblewrap, sandbox
from vmgr.sandbox.libraries import program_need

async def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    box = Sandbox(
        "full", "", bubblewrap=find_bubblewrap(), setpriv=Path(shutil.which("setpriv")),
        program=await program_need(Path("/usr/bin/printf"), Path("/usr/bin/setpriv")),
    )
    assert box.bubblewrap, "bubblewrap is one of the packages that ./dev installs"
    sandbox._program_of = die
    lives, _ = os.pipe()
    await box.spawn(
        ["/usr/bin/printf", "it runs"], Need(), stdout=1, stderr=2, pass_fds=[lives],
        before=[sys.executable, "-c", {WAITS!r}, str(lives)],
    )

asyncio.run(main())
"""


async def test_a_program_starts_though_who_started_it_is_gone_before_it_is_told() -> None:
    """What waits for a monitor that a closed pipe has ended would wait for ever."""
    # Its output is read to the end, which comes when all of them have gone.
    done = await run([sys.executable, "-c", DIES], deadline=60, check=False)
    assert (done.status.signal, done.stdout) == (9, b"it runs"), done.stderr
