"""`python -m brasyn_dist.report` is `brasyn report`."""

import sys

from brasyn_dist.cli.report import main

if __name__ == "__main__":
    sys.exit(main())
