"""Copying files between the host and machines, as tar streams through the agent's builtins.

`tarreader` and `extract` treat what a machine sends as hostile; `pack` reads the person's own
files.
"""
