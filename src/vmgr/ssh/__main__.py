"""`python -m vmgr.ssh`; started by the helper."""

from vmgr.ssh.main import main

if __name__ == "__main__":
    main()
