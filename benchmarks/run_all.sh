#!/usr/bin/env bash
# Everything that docs/explanation/performance.md reports, on this machine: benchmarks/run_all.sh [OUT] [CASE_FOLDER] [COHORT_FOLDER]
#
# On a GPU machine: the matrix at batch 16, the ladder of batch sizes to the memory limit, a profile of the default and the
# fastest variant, inference, and the tests that need a GPU; about an hour on one card. On a CPU what ends within the hour, at full width.
# SMALL=1 runs all of it, the ladder and the profile too, at toy sizes in minutes on anything: to see that it works.
# OUT (default benchmarks/results) then holds one JSON, and for training one table and one plot, of each benchmark.
# SEGMENTER=RUN_FOLDER in the environment adds the Tversky term. A benchmark that fails is named at the end; the others run.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results} case=${2:-} cohort=${3:-}
mkdir -p "$out"
failed=()
run() { echo "== $*"; PYTHONPATH=. python "$@" || failed+=("$1"); }
segmenter=(${SEGMENTER:+--segmenter "$SEGMENTER"})
view=(${case:+--case "$case"})
cases=(${cohort:+--cases "$cohort"})
stream=(--threads 1 2 4 8 --cold) shard=(--workers 1 "$(nproc)") checkpoint=()

if [ -n "${SMALL:-}" ]; then
    size=(--width 8 --image-size 48) once=(--batches 4 --repeats 1 --warmup 0 --variants plain fast)
    run benchmarks/bench_train.py --out "$out/train" "${size[@]}" "${once[@]}" --count "${segmenter[@]}"
    run benchmarks/bench_train.py --out "$out/ladder" "${size[@]}" "${once[@]}" --ladder 8 --readings 4
    run benchmarks/profile_train.py --out "$out/profile" "${size[@]}" --batch 4 --variants fast
    run benchmarks/bench_infer.py --out "$out" --width 8 --every 20 "${view[@]}"
    stream=(--slices 64 --rounds 1 --threads 1 --workers 0 --cold) shard=(--workers 1 --count 1) checkpoint=(--width 8 --repeats 1)
elif python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    nvidia-smi -q > "$out/nvidia-smi.txt"
    run benchmarks/bench_train.py --out "$out/train" --batches 16 --count --repeats 5 "${segmenter[@]}"
    run benchmarks/bench_train.py --out "$out/ladder" --batches 4 --ladder --repeats 3 --variants plain default together together-recompute
    run benchmarks/profile_train.py --out "$out/profile" --batch 16 --variants default together
    run benchmarks/bench_infer.py --out "$out" --precision no "${view[@]}"
    run benchmarks/bench_infer.py --out "$out/infer-bf16" --precision bf16 "${view[@]}"
    run -m pytest -q tests/training/test_step.py tests/models
else
    run benchmarks/bench_train.py --out "$out/train" --batches 4 --ladder 8 --repeats 1 --warmup 1 --variants plain fast "${segmenter[@]}"
    run benchmarks/bench_infer.py --out "$out" --every 5 "${view[@]}"
    stream+=(--rounds 1)
fi
run benchmarks/bench_stream.py --out "$out" "${stream[@]}"
run benchmarks/bench_shard.py --out "$out" "${shard[@]}" "${cases[@]}"
run benchmarks/bench_checkpoint.py --out "$out" "${checkpoint[@]}"
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
