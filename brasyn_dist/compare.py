"""`python -m brasyn_dist.compare` is `brasyn compare`."""

import sys

from brasyn_dist.cli.compare import main

if __name__ == "__main__":
    sys.exit(main())
