#!/usr/bin/env bash
# All measurements of a GPU in minutes: benchmarks/gpu_day.sh [--wheels FOLDER] [--minutes 9] [--out OUT] [options of measure.py]
#
# Needs this repository, a Python with torch (PYTHON, default python3), and a folder of wheels of the packages that this Python
# lacks. They are installed below OUT; nothing is downloaded. Rows are measured in order of importance, and each is written to
# OUT/rows.jsonl when it ends. Run the same command again to continue. Afterwards fill the table of the documentation:
#
#     python benchmarks/measure.py --out OUT --fill docs/explanation/performance.md
set -euo pipefail
begun=$SECONDS
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} out=benchmarks/results/gpu minutes=9 wheels="" more=()
while [ $# -gt 0 ]; do
    case $1 in
        --wheels) wheels=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        --minutes) minutes=$2; shift 2 ;;
        *) more+=("$1"); shift ;;
    esac
done
mkdir -p "$out"
export PYTHONPATH=$PWD:$out/site${PYTHONPATH:+:$PYTHONPATH}
if [ -n "$wheels" ] && [ ! -d "$out/site" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$out/site.part" "$wheels"/*.whl
    mv "$out/site.part" "$out/site"
fi
"$python" benchmarks/measure.py --out "$out" --seconds $((minutes * 60 - SECONDS + begun)) "${more[@]}"
