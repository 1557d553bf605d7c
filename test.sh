#!/usr/bin/env bash
# Style, types, layers and all tests. `./test.sh -m "not slow"` leaves the long ones out; arguments go to pytest.
cd "$(dirname "$0")"
EXTRAS=dev
source tools/setup.sh
ruff check .
ruff format --check .
mypy
lint-imports
exec python -m pytest "$@"
