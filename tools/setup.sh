# Sourced by demo.sh and test.sh: a virtual environment with the versions in constraints.txt, made once.
#   VENV=DIR    where (default .venv)       PYTHON=python3.12    which interpreter (3.11 or later)
#   TORCH=...   another build of PyTorch (docs/getting-started/install.md)
set -euo pipefail
VENV=${VENV:-.venv}
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0] + "; set PYTHON=") if sys.version_info < (3, 11) else None'
if [ ! -x "$VENV/bin/python" ]; then
    "$PYTHON" -m venv "$VENV"
fi
# The stamp holds what was installed: it is written last, so an interrupted installation is repeated.
STAMP="$(cat pyproject.toml setup.py constraints.txt | cksum) ${EXTRAS:-} ${TORCH:-}"
if [ "$(cat "$VENV/.brasyn_dist" 2>/dev/null || true)" != "$STAMP" ]; then
    echo "installing into $VENV (once) ..."
    "$VENV/bin/python" -m pip install --quiet "${TORCH:-$(grep '^torch==' constraints.txt)}"
    "$VENV/bin/python" -m pip install --quiet --constraint constraints.txt --editable ".${EXTRAS:+[$EXTRAS]}"
    echo "$STAMP" > "$VENV/.brasyn_dist"
fi
export PATH="$(cd "$VENV/bin" && pwd):$PATH"
