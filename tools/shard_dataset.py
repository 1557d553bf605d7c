"""`python tools/shard_dataset.py` is `brasyn shard`, in a clone that is not installed."""

import sys

from brasyn_dist.cli.shard import main

if __name__ == "__main__":
    sys.exit(main())
