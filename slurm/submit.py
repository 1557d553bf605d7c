"""`python slurm/submit.py` is `brasyn submit`, in a clone that is not installed."""

import sys

from brasyn_dist.cli.submit import main

if __name__ == "__main__":
    sys.exit(main())
