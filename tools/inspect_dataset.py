"""`python tools/inspect_dataset.py` is `brasyn inspect`, in a clone that is not installed."""

import sys

from brasyn_dist.cli.inspect import main

if __name__ == "__main__":
    sys.exit(main())
