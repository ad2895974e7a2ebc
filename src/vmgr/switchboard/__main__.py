"""`python -m vmgr.switchboard`."""

from vmgr.switchboard.main import main

main()
