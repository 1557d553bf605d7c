#!/bin/sh
# Completes every case in INPUT:   entrypoint.sh [INPUT [OUTPUT [option of `brasyn infer` ...]]]
#
#   INPUT      folder of case folders, <case>/<case>-<modality>.nii.gz, without 1 to 3 modalities   (default /input)
#   OUTPUT     folder for <case>-<modality>.nii.gz and manifest.json                                 (default /output)
#   WEIGHTS    export or run folder; default: /weights where something is mounted there, else those baked into the image
#
# Needs no network, no particular user, and write access to OUTPUT only. Exit status: 0 all done, 1 a case
# failed (all others are done) or nothing could be, 2 wrong usage.
set -eu
INPUT=${1:-/input}
OUTPUT=${2:-/output}
if [ $# -gt 2 ]; then shift 2; else shift $#; fi
fail() { echo "error: $1" >&2; exit 2; }

if [ -z "${WEIGHTS:-}" ]; then
    WEIGHTS=/opt/brasyn_dist/weights
    if [ -n "$(ls -A /weights 2>/dev/null)" ]; then WEIGHTS=/weights; fi
fi
[ -d "$INPUT" ] || fail "$INPUT: no such folder; mount the cases there, or name their folder as the first argument"
[ -d "$OUTPUT" ] && [ -w "$OUTPUT" ] || fail "$OUTPUT is no folder that user $(id -u) may write to; mount one there"
[ -f "$WEIGHTS/config.json" ] || [ -f "$WEIGHTS/export/config.json" ] ||
    fail "$WEIGHTS holds no weights (config.json, model.safetensors); mount an export or run folder at /weights"

# Libraries need a folder for caches and temporary files. The user may have neither a home folder nor a name.
SCRATCH=/tmp
[ -w "$SCRATCH" ] || SCRATCH=$OUTPUT
export HOME="$SCRATCH" TMPDIR="$SCRATCH" XDG_CACHE_HOME="$SCRATCH" MPLCONFIGDIR="$SCRATCH" TORCHINDUCTOR_CACHE_DIR="$SCRATCH"
export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
# exec: signals reach the Python process.
exec python3 -m brasyn_dist infer --weights "$WEIGHTS" --input "$INPUT" --output "$OUTPUT" "$@"
