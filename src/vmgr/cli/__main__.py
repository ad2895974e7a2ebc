"""`python -m vmgr.cli`: the `vmgr` command."""

from vmgr.cli.main import main

if __name__ == "__main__":
    main()
