"""`python -m brasyn_dist.report` is `brasyn report`. It is started by name: cli is a higher layer."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv.insert(1, "report")
    runpy.run_module("brasyn_dist", run_name="__main__")
