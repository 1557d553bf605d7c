#!/usr/bin/env bash
# Style, types and all tests. `./test.sh -m "not slow"` leaves the long ones out; arguments go to pytest.
cd "$(dirname "$0")"
EXTRAS=test
source tools/setup.sh
ruff check .
ruff format --check .
mypy
exec python -m pytest "$@"
