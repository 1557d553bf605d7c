"""`python tools/convert_checkpoint.py` is `brasyn convert`, in a clone that is not installed."""

import sys

from brasyn_dist.cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
