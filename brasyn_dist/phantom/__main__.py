"""`python -m brasyn_dist.phantom` is `brasyn phantom`."""

import sys

from brasyn_dist.cli.phantom import main

if __name__ == "__main__":
    sys.exit(main())
