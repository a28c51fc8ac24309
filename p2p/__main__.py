"""`python -m p2p COMMAND`: the same as `p2p COMMAND`."""

import sys

from p2p.cli import main

if __name__ == "__main__":
    sys.exit(main())
