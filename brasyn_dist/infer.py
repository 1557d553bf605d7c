"""`python -m brasyn_dist.infer` is `brasyn infer`."""

import sys

from brasyn_dist.cli.infer import main

if __name__ == "__main__":
    sys.exit(main())
