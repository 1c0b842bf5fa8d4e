"""Runs the command line: `python -m trimtab`."""

from .scripts.cli import main

if __name__ == "__main__":
    main()
