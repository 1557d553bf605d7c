#!/usr/bin/env bash
# Style, types, layers and all tests. `./test.sh -m "not slow"` leaves the long ones out; arguments go to pytest.
# pytest-xdist distributes the tests over one process more than there are cores: some tests wait. `-n 0`: no distribution.
cd "$(dirname "$0")"
EXTRAS=dev
source tools/setup.sh
ruff check .
ruff format --check .
mypy
lint-imports
exec python -m pytest --numprocesses $(($(nproc) + 1)) --maxprocesses 4 "$@"
