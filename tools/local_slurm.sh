#!/usr/bin/env bash
# A real Slurm on this machine, to try the job scripts: several nodes, two partitions with preemption, fake GPUs if wanted.
#
#     sudo apt-get install slurmctld slurmd slurm-client munge iproute2       (Debian, Ubuntu)
#     sudo tools/local_slurm.sh start          then follow what it prints; `status` and `stop` likewise
#
# Needs root; needs neither systemd nor cgroups. Where network namespaces are permitted every node is a host of its own
# (address, host name, processes that can be killed like a machine's); elsewhere the nodes share this host's network.
# Partitions: `low` (default, jobs are requeued with 20 s grace when `high` wants their nodes) and `high`.
#
# `power-off N` and `power-on N` show what a job does when a node dies; `exec N COMMAND` runs a command as on node N.
#
#     LOCAL_SLURM_DIR    everything it writes (default /tmp/local_slurm); clusters in other folders do not meet
#     NODES=2            number of nodes, called node1, node2, ...        GPUS=0   fake GPUs a node
#     NETNS=auto         1: insist on namespaces, 0: do without
set -euo pipefail

DIR=${LOCAL_SLURM_DIR:-/tmp/local_slurm}
NODES=${NODES:-2}
GPUS=${GPUS:-0}
NETNS=${NETNS:-auto}
PROGRAMS="slurmctld slurmd munged sbatch ip nsenter unshare"

fail() { echo "local_slurm.sh: $*" >&2; exit 1; }

# Numbers that depend on the folder alone: `stop` finds what `start` made, and two clusters rarely meet.
number=$(( $(printf %s "$DIR" | cksum | cut -d' ' -f1) % 200 + 20 ))
net=10.77.$number
bridge=lsbr$number
controller_port=$(( 21000 + number * 16 ))
host=$(hostname -s)

space() { echo "ls$number-node$1"; }

# Run a command as on node $1. Not `ip netns exec`: that mounts /sys anew, and slurmd needs /sys/fs/cgroup.
on_node() {
    local node=$1; shift
    if [ -e "$DIR/namespaces" ]; then
        nsenter --net="/run/netns/$(space "$node")" unshare --uts --mount sh -c \
            'hostname "node$1"; mount --bind "$2" /etc/hosts; shift 2; exec "$@"' sh "$node" "$DIR/hosts" "$@"
    else
        "$@"
    fi
}

make_namespaces() {
    ip link add "$bridge" type bridge && ip addr add "$net.254/24" dev "$bridge" && ip link set "$bridge" up || return 1
    { echo "127.0.0.1 localhost"; echo "$net.254 $host"; } > "$DIR/hosts"
    local i
    for i in $(seq 1 "$NODES"); do
        ip netns add "$(space "$i")" &&
            ip link add "lsv$number-$i" type veth peer name eth0 netns "$(space "$i")" &&
            ip link set "lsv$number-$i" master "$bridge" up &&
            ip -n "$(space "$i")" addr add "$net.$i/24" dev eth0 &&
            ip -n "$(space "$i")" link set eth0 up &&
            ip -n "$(space "$i")" link set lo up || return 1
        echo "$net.$i node$i" >> "$DIR/hosts"
    done
    touch "$DIR/namespaces"
}

remove_namespaces() {
    local name pids
    for name in $(ip netns list 2>/dev/null | cut -d' ' -f1 | grep "^ls$number-node" || true); do
        pids=$(ip netns pids "$name" || true)
        [ -z "$pids" ] || kill -9 $pids 2>/dev/null || true
        ip netns del "$name" || true
    done
    ip link del "$bridge" 2>/dev/null || true
    rm -f "$DIR/namespaces"
}

write_configuration() {
    local controller=127.0.0.1 i address
    [ -e "$DIR/namespaces" ] && controller=$net.254
    cat > "$DIR/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=$host($controller)
SlurmctldPort=$controller_port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its old credential has expired: two minutes by default.
AuthInfo=socket=$DIR/munge.sock,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool.%n
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd.%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=5,defer
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=20
KillWait=20
MinJobAge=3600
InactiveLimit=0
JobRequeue=1
MailProg=/bin/true
GresTypes=gpu
# Nodes say that they have more processors than this machine, so that the scripts' defaults fit.
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
CONF
    for i in $(seq 1 "$NODES"); do
        address="NodeHostname=$host NodeAddr=127.0.0.1"
        [ -e "$DIR/namespaces" ] && address="NodeHostname=node$i NodeAddr=$net.$i"
        echo "NodeName=node$i $address Port=$(( controller_port + i )) Gres=gpu:$GPUS CPUs=16 Boards=1 SocketsPerBoard=1" \
            "CoresPerSocket=16 ThreadsPerCore=1 RealMemory=64000 State=UNKNOWN" >> "$DIR/slurm.conf"
        mkdir -p "$DIR/spool.node$i"
    done
    {
        echo "PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20"
        echo "PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF"
    } >> "$DIR/slurm.conf"
    mkdir -p "$DIR/dev"
    : > "$DIR/gres.conf"
    if [ "$GPUS" -gt 0 ]; then
        for i in $(seq 0 $(( GPUS - 1 ))); do : > "$DIR/dev/gpu$i"; done
        if [ "$GPUS" = 1 ]; then i=0; else i="[0-$(( GPUS - 1 ))]"; fi
        echo "Name=gpu File=$DIR/dev/gpu$i" > "$DIR/gres.conf"
    else
        sed -i 's/ Gres=gpu:0//' "$DIR/slurm.conf"
    fi
}

start() {
    [ "$(id -u)" = 0 ] || fail "needs root: sudo $0 start"
    local program i tries
    for program in $PROGRAMS; do
        command -v "$program" > /dev/null || fail "$program is missing: apt-get install slurmctld slurmd slurm-client munge iproute2"
    done
    [ ! -e "$DIR/slurm.conf" ] || fail "$DIR is in use: $0 stop, or set LOCAL_SLURM_DIR to another folder"
    mkdir -p "$DIR"/{state,log,munge}
    DIR=$(cd "$DIR" && pwd)
    chmod 755 "$DIR"; chmod 700 "$DIR/munge"
    trap 'echo "local_slurm.sh: could not start; see $DIR/log" >&2; stop' ERR
    if [ "$NETNS" != 0 ] && ! make_namespaces 2> "$DIR/log/namespaces.log"; then
        remove_namespaces
        [ "$NETNS" != 1 ] || fail "network namespaces are not permitted here: $(cat "$DIR/log/namespaces.log")"
    fi
    write_configuration
    dd if=/dev/urandom of="$DIR/munge/key" bs=1024 count=1 2> /dev/null; chmod 600 "$DIR/munge/key"
    munged --force --key-file="$DIR/munge/key" --socket="$DIR/munge.sock" --pid-file="$DIR/munge/munged.pid" \
        --log-file="$DIR/munge/munged.log" --seed-file="$DIR/munge/seed" --num-threads=2 2> "$DIR/log/munged.err"
    export SLURM_CONF=$DIR/slurm.conf
    slurmctld -c
    for i in $(seq 1 "$NODES"); do on_node "$i" slurmd -N "node$i"; done
    for tries in $(seq 1 150); do
        [ "$(sinfo --noheader --partition=low --format='%T %D' 2> /dev/null)" != "idle $NODES" ] || break
        sleep 0.2
    done
    [ "$tries" -lt 150 ] || fail "the nodes did not come up; see $DIR/log (then $0 stop)"
    sinfo
    echo
    echo "export SLURM_CONF=$SLURM_CONF"
}

stop() {
    trap - ERR
    [ -d "$DIR" ] || { echo "nothing runs in $DIR"; return 0; }
    export SLURM_CONF=$DIR/slurm.conf
    local pids="" file tries pid alive
    if [ -s "$DIR/slurmctld.pid" ] && kill -0 "$(cat "$DIR/slurmctld.pid")" 2> /dev/null; then
        # Jobs first: a slurmd that goes before them leaves their processes behind.
        squeue --noheader --format=%A 2> /dev/null | xargs --no-run-if-empty scancel 2> /dev/null || true
        for tries in $(seq 1 125); do [ -n "$(squeue --noheader 2> /dev/null)" ] || break; sleep 0.2; done
    fi
    for file in "$DIR"/slurmd.*.pid "$DIR/slurmctld.pid" "$DIR/munge/munged.pid"; do
        if [ -s "$file" ] && grep -qaE 'slurmd|slurmctld|munged' "/proc/$(cat "$file")/cmdline" 2> /dev/null; then
            pids="$pids $(cat "$file")"
        fi
    done
    [ -z "$pids" ] || kill $pids 2> /dev/null || true
    for tries in $(seq 1 50); do
        alive=""
        for pid in $pids; do
            case $(ps -o stat= -p "$pid" || true) in "" | Z*) ;; *) alive="$alive $pid" ;; esac
        done
        [ -n "$alive" ] || break
        sleep 0.2
    done
    [ -z "$alive" ] || kill -9 $alive 2> /dev/null || true
    remove_namespaces
    # Logs stay where they are asked for.
    [ -n "${KEEP_LOGS:-}" ] || rm -rf "$DIR"/{log,dev,hosts}
    rm -rf "$DIR"/{state,munge,munge.sock*,slurm.conf,gres.conf,*.pid} "$DIR"/spool.*
    rmdir "$DIR" 2> /dev/null || true
    echo "stopped"
}

# Node $1 loses its power: nothing on it is told. Without namespaces only its slurmd goes.
power_off() {
    [ -s "$DIR/slurmd.node$1.pid" ] || fail "node$1 does not run in $DIR"
    kill -9 "$(cat "$DIR/slurmd.node$1.pid")"
    if [ -e "$DIR/namespaces" ]; then ip netns pids "$(space "$1")" | xargs --no-run-if-empty kill -9 2> /dev/null || true; fi
}

power_on() {
    export SLURM_CONF=$DIR/slurm.conf
    on_node "$1" slurmd -N "node$1"
}

status() {
    [ -e "$DIR/slurm.conf" ] || fail "nothing runs in $DIR: $0 start"
    export SLURM_CONF=$DIR/slurm.conf
    sinfo --Node --long && squeue && echo "export SLURM_CONF=$SLURM_CONF"
}

case ${1:-} in
    start | stop | status) "$1" ;;
    power-off) power_off "${2:?number of the node}" ;;
    power-on) power_on "${2:?number of the node}" ;;
    exec) shift; on_node "$@" ;;
    *) fail "usage: $0 start | stop | status | power-off N | power-on N | exec N COMMAND...   (N: number of a node)" ;;
esac
