"""`python tools/drop_modality.py` is `brasyn drop-modality`, in a clone that is not installed."""

import sys

from brasyn_dist.cli.drop_modality import main

if __name__ == "__main__":
    sys.exit(main())
