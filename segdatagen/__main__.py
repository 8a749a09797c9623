"""`python -m segdatagen`: the command line, where the package is not installed as a command.

It only hands over the exit status. All commands are in `cli`.
"""

import sys

from segdatagen.cli import main

if __name__ == "__main__":
    sys.exit(main())
