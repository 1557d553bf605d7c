"""`python -m brasyn_dist.train` is `brasyn train`; launchers start it."""

from brasyn_dist.cli.train import main
from brasyn_dist.common.processes import run_and_leave

if __name__ == "__main__":
    run_and_leave(main)
