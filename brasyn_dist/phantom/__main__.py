"""`python -m brasyn_dist.phantom` is `brasyn phantom`. It is started by name: cli is a higher layer."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv.insert(1, "phantom")
    runpy.run_module("brasyn_dist", run_name="__main__")
