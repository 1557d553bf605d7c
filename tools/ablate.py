"""`python tools/ablate.py` is `brasyn ablate`, in a clone that is not installed."""

import sys

from brasyn_dist.cli.ablate import main

if __name__ == "__main__":
    sys.exit(main())
