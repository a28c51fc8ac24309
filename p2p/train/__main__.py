"""One process of a training run, as `p2p train` has Composer start it."""

import sys

from p2p.train.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
