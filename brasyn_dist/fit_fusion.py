"""`python -m brasyn_dist.fit_fusion` is `brasyn fit-fusion`."""

import sys

from brasyn_dist.cli.fit_fusion import main

if __name__ == "__main__":
    sys.exit(main())
