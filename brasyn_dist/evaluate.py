"""`python -m brasyn_dist.evaluate` is `brasyn evaluate`."""

import sys

from brasyn_dist.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
