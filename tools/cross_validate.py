"""`python tools/cross_validate.py` is `brasyn cross-validate`, in a clone that is not installed."""

import sys

from brasyn_dist.cli.cross_validate import main

if __name__ == "__main__":
    sys.exit(main())
