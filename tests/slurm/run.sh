#!/bin/bash
# A sweep on a real Slurm of one node: submitted, requeued by hand, preempted, and compared byte for byte with one run.
# Installs slurmctld, slurmd, slurm-client and munge with apt-get where they are missing and the user is root.
# Exit code 77, with the reason on the last line, where Slurm cannot be had or does not start.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-$PWD/.venv/bin/python}"
skip() { echo "skipped: $1"; exit 77; }

[ "$(id -u)" = 0 ] || skip "Slurm's daemons need root"
if ! command -v slurmctld slurmd sbatch munged > /dev/null; then
    command -v apt-get > /dev/null || skip "no slurmctld here, and no apt-get to install it"
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        slurmctld slurmd slurm-client munge; } > /dev/null 2>&1 || skip "the packages of Slurm cannot be installed"
fi

at="$(mktemp -d)"
daemons=()
clean() {
    scancel --user=root 2> /dev/null || true
    for daemon in "${daemons[@]}"; do kill "$daemon" 2> /dev/null || true; done
    wait 2> /dev/null || true
    rm -rf "$at"
}
trap clean EXIT
chmod 755 "$at"
mkdir "$at/munge" "$at/state" "$at/spool"
chmod 700 "$at/munge"
head -c 1024 /dev/urandom > "$at/munge/key"
chmod 400 "$at/munge/key"
munged --foreground --force --key-file="$at/munge/key" --socket="$at/munge/socket" --pid-file="$at/munge/pid" \
    --log-file="$at/munge/log" --seed-file="$at/munge/seed" > /dev/null 2>&1 &
daemons+=($!)

host="$(hostname -s)"
cat > "$at/slurm.conf" << EOF
ClusterName=probe
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$at/munge/socket
CredType=cred/munge
StateSaveLocation=$at/state
SlurmdSpoolDir=$at/spool
SlurmctldPidFile=$at/slurmctld.pid
SlurmdPidFile=$at/slurmd.pid
SlurmctldLogFile=$at/slurmctld.log
SlurmdLogFile=$at/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MinJobAge=300
KillWait=5
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=low Nodes=$host Default=YES PriorityTier=1 State=UP
PartitionName=high Nodes=$host PriorityTier=10 PreemptMode=OFF State=UP
EOF
export SLURM_CONF="$at/slurm.conf"
for _ in $(seq 50); do [ -S "$at/munge/socket" ] && break; sleep 0.1; done
[ -S "$at/munge/socket" ] || skip "munged does not start"
slurmctld -D > /dev/null 2>&1 &
daemons+=($!)
slurmd -D -N "$host" > /dev/null 2>&1 &
daemons+=($!)
for _ in $(seq 60); do sinfo -h -o %T 2> /dev/null | grep -q idle && break; sleep 0.5; done
sinfo -h -o %T 2> /dev/null | grep -q idle || {
    tail -n 5 "$at/slurmctld.log" "$at/slurmd.log" 2> /dev/null || true
    skip "slurmctld or slurmd does not start"
}
echo "Slurm $(sinfo --version | cut -d' ' -f2) runs on $host"

mkdir "$at/study"
cd "$at/study"
cat > tiny_study.py << 'EOF'
import random
import time


def score(layer: int, seed: int) -> dict:
    time.sleep(0.4)
    with open("runs.log", "a") as log:
        log.write(f"{layer} {seed}\n")
    return {"score": layer / 7 + seed, "drawn": random.random()}
EOF
cat > tiny.toml << 'EOF'
run = "tiny_study:score"
out = "spread"

[grid]
layer = [0, 1, 2, 3, 4, 5]
seed = [0, 1, 2, 3, 4, 5]

[slurm]
shards = 4
memory = "200M"
time = "00:05:00"
partition = "low"
EOF
finished() { cat spread/journal-*.jsonl 2> /dev/null | wc -l; }
wait_for() { # SECONDS COMMAND...
    local until=$((SECONDS + $1)); shift
    until "$@"; do
        [ "$SECONDS" -lt "$until" ] || { echo "waited in vain for: $*"; squeue; tail -n 20 spread/slurm/*.log "$at/slurmctld.log"; exit 1; }
        sleep 0.2
    done
}
at_least() { [ "$(finished)" -ge "$1" ]; }
restarts() { scontrol show job "$1" 2> /dev/null | grep -o 'Restarts=[1-9][0-9]*' | head -1; }
requeued() { [ -n "$(restarts "$1")" ]; }
empty() { [ -z "$(squeue -h)" ]; }

"$python" -m probe sweep tiny.toml --slurm --dry-run
submitted="$("$python" -m probe sweep tiny.toml --slurm)"
echo "$submitted"
job="$(echo "$submitted" | sed -n 's/^job \([0-9]*\):.*/\1/p')"
[ -n "$job" ]
wait_for 90 at_least 4

# A second writer of a shard that runs is refused.
if "$python" -m probe sweep tiny.toml --shard 1/4 2> refused; then echo "a second writer was let in"; exit 1; fi
grep "is being written by process" refused

# An element is put back into the queue in the middle of its work, and then all of them by a job of higher priority.
scontrol requeue "${job}_1"
wait_for 60 requeued "${job}_1"
echo "element 1 was requeued by hand with $(finished) of 36 cells finished"
sbatch --partition=high --cpus-per-task=2 --mem=100M --output=/dev/null --wrap="sleep 2" > /dev/null
preempted() { scontrol show job "$job" | grep -o 'Restarts=[1-9]' | wc -l | grep -q '[2-9]'; }
wait_for 60 preempted
echo "elements were preempted with $(finished) of 36 cells finished"
# A requeued job waits two minutes unless it is told not to.
for i in 1 2 3 4; do scontrol update JobId="${job}_$i" StartTime=now 2> /dev/null || true; done
wait_for 240 empty

[ -f spread/results.jsonl ] || { echo "no results.jsonl"; tail -n 20 spread/slurm/*.log; exit 1; }
runs="$(wc -l < runs.log)"
"$python" -m probe sweep tiny.toml --out single > /dev/null
cmp spread/results.jsonl single/results.jsonl
[ "$(cat spread/journal-*.jsonl | wc -l)" = 36 ] || { echo "a finished cell was run again"; exit 1; }
echo "36 cells in $runs runs, 4 shards, requeued and preempted: results.jsonl is that of one run, byte for byte"
