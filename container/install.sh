#!/bin/sh
# Installs the package into an image; Dockerfile and apptainer.def both run this, with the sources in /opt/brasyn_dist/source.
#   TORCH    what to give pip for torch; empty: the tested version, from pip's own index
set -eu
ROOT=/opt/brasyn_dist
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "the base image needs Python 3.11 or later" >&2; exit 1; }
python3 -m venv "$ROOT/venv"
cd "$ROOT/source"
# Unquoted: TORCH may hold options, such as --index-url.
"$ROOT/venv/bin/pip" install --no-cache-dir ${TORCH:-$(grep '^torch==' constraints.txt)}
"$ROOT/venv/bin/pip" install --no-cache-dir --constraint constraints.txt '.[volumes]'
# The user of a container may have any number and owns no file in the image.
chmod -R a+rX "$ROOT"
"$ROOT/venv/bin/python" -c 'import brasyn_dist'
