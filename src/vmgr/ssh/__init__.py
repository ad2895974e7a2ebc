"""The process that makes `ssh NAME@vmgr` work: an SSH server on this computer's loopback.

A process of its own, and a client of the helper like the CLI (see docs/decisions/0010-ssh.md). It
is imported by nothing else: asyncssh is big and slow to import.
"""
