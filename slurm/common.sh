# Sourced by the job scripts, in the batch shell on the first node of the job: environment, warning before the end, requeue.
#
#     the time limit is near, or a job of higher priority wants the nodes
#       -> Slurm sends SIGUSR1 to this shell -> make_room (of the script) -> the work saves and ends -> scontrol requeue
#
# ROOT is the folder above this one: the clone, or the installed package. Relative paths on the command line of a script are relative
# to the folder of `sbatch`.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Leaked from the job or shell in which sbatch was called, they contradict each other and the job's own --mem in srun.
unset SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_MEM_PER_NODE
PYTHON=${PYTHON:-python}
if [ -x "${VENV:-$ROOT/.venv}/bin/python" ]; then
    export PATH="$(cd "${VENV:-$ROOT/.venv}/bin" && pwd):$PATH"
fi
if [ -d "$ROOT/brasyn_dist" ]; then
    export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
fi
STOP_PATIENCE=${STOP_PATIENCE:-240}   # seconds from the warning to the requeue if the work has not ended; at the latest 15 s
                                      # before the time limit, which would end the job without a requeue
MAX_RESTARTS=${MAX_RESTARTS:-100}     # requeues after which the job ends

JOB=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
# Name of this job: one task of an array has the number of the whole array.
SELF=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
SELF=${SELF:-$SLURM_JOB_ID}
warned=""

say() { echo "$(date '+%F %T') job $JOB: $*"; }

# Seconds that the work may take to end.
patience() {
    local limit left
    limit=$(scontrol show job --oneliner "$SELF" | sed -nE '1s/.* EndTime=([0-9T:-]+) .*/\1/p')
    left=$(( ${limit:+$(date --date="$limit" +%s)} + 0 - $(date +%s) - 15 ))
    if [ -n "$limit" ] && [ "$left" -lt "$STOP_PATIENCE" ]; then
        echo $(( left > 1 ? left : 1 ))
    else
        echo "$STOP_PATIENCE"
    fi
}

# Run "$@" in the background and wait for it; its exit status is in `status`. SIGUSR1 calls make_room, once. If the work does not end
# in time, the job is requeued with what it saved last.
run_until_warned() {
    trap 'warned=${warned:-$SECONDS}' USR1
    trap 'say "asked to end (SIGTERM)"' TERM   # the steps receive it, too, and end
    "$@" &
    local work=$! told="" patience
    status=0
    while kill -0 "$work" 2> /dev/null; do
        if [ -n "$warned" ] && [ -z "$told" ]; then
            told=1
            patience=$(patience)
            say "asked to make room (SIGUSR1), within $patience s"
            make_room
        fi
        if [ -n "$told" ] && [ $(( SECONDS - warned )) -ge "$patience" ]; then
            say "has not ended within $patience s"
            requeue
        fi
        sleep 1 & wait $! || true   # a trap runs at once while the shell waits, but not while it runs a program
    done
    wait "$work" || status=$?
}

# Put this job back into the queue, unless it was cancelled.
requeue() {
    local state
    state=$(squeue --noheader --jobs="$SELF" --format=%T || true)
    if [ "$state" != RUNNING ]; then
        say "not requeued by itself, Slurm is ending it (${state:-gone}). After scancel: submit it again to continue"
        exit 0
    fi
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "$MAX_RESTARTS" ]; then
        say "not requeued: it was $MAX_RESTARTS times (MAX_RESTARTS); submit it again to continue"
        exit 1
    fi
    trap - TERM
    say "requeued"
    scontrol requeue "$SELF" || { say "Slurm refuses to requeue: submit it again to continue"; exit 1; }
    sleep 60   # Slurm ends this shell
    exit 0
}

# For work that a repeated command continues: shard, infer, evaluate.
run_repeatable() {
    make_room() { scancel --signal=TERM "$SELF" || true; }   # to the steps; srun would kill them at once
    say "on ${SLURM_JOB_NODELIST}: $*"
    run_until_warned "$@"
    # 75: ended on request; 143: by SIGTERM. Without a warning that was preemption (or scancel, see requeue).
    case $status in
        0) exit 0 ;;
        75 | 143) requeue ;;
    esac
    [ -z "$warned" ] || requeue
    exit "$status"
}
