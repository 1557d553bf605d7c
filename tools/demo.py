"""`python tools/demo.py` is `brasyn demo`, in a clone that is not installed."""

import sys

from brasyn_dist.cli.demo import main

if __name__ == "__main__":
    sys.exit(main())
