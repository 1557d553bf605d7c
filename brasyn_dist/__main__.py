"""`python -m brasyn_dist` is `brasyn`."""

from brasyn_dist.cli.main import console

if __name__ == "__main__":
    console()
