"""`python -m vmgr.helper`: run the helper in the foreground."""

from vmgr.helper.main import main

if __name__ == "__main__":
    main()
