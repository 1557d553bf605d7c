#!/usr/bin/env bash
# The whole pipeline on this machine: cases, shards, training with an interruption and a resume, synthesis, evaluation, report.
#   ./demo.sh                        on a synthetic cohort
#   DATA=/path/to/cases ./demo.sh    on a folder of real BraTS cases
cd "$(dirname "$0")"
EXTRAS=eval
source tools/setup.sh
exec python -m brasyn_dist demo ${DATA:+--data "$DATA"} "$@"
