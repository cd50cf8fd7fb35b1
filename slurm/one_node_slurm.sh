#!/bin/bash
# A private Slurm of one node on this machine, for trying the files of this folder: Debian's slurm-wlm and munge, as root.
#   slurm/one_node_slurm.sh start [FOLDER]    munged, slurmctld, slurmd; their files in FOLDER (default /tmp/one_node_slurm)
#   export SLURM_CONF=FOLDER/slurm.conf       then sbatch, srun, squeue, sacct-less as usual
#   slurm/one_node_slurm.sh stop [FOLDER]     ends exactly the processes it started
set -euo pipefail
folder=${2:-/tmp/one_node_slurm}

start() {
    for program in munged slurmctld slurmd sinfo; do
        command -v "$program" > /dev/null || { echo "error: $program is missing: apt-get install slurm-wlm munge" >&2; exit 1; }
    done
    [ -e "$folder/pids" ] && { echo "error: $folder: runs already; stop it first" >&2; exit 1; }
    mkdir -p "$folder"/{state,spool,log,munge}
    chmod 700 "$folder/munge"
    head -c 128 /dev/urandom > "$folder/munge/key"
    chmod 600 "$folder/munge/key"
    host=$(hostname -s)
    memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
    cat > "$folder/slurm.conf" <<EOF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
ReturnToService=2
SlurmctldPort=16817
SlurmdPort=16818
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=60
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc --all) RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
EOF
    export SLURM_CONF=$folder/slurm.conf
    munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
        --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" > /dev/null 2>&1 &
    echo $! > "$folder/pids"
    sleep 1
    slurmctld -D > /dev/null 2>&1 &
    echo $! >> "$folder/pids"
    slurmd -D > /dev/null 2>&1 &
    echo $! >> "$folder/pids"
    for _ in $(seq 30); do
        sinfo -h -o %t 2> /dev/null | grep -q idle && { echo "export SLURM_CONF=$folder/slurm.conf"; return; }
        sleep 1
    done
    echo "error: no idle node after 30 s; see $folder/log" >&2
    stop
    exit 1
}

stop() {
    [ -e "$folder/pids" ] || { echo "error: $folder: nothing runs there" >&2; exit 1; }
    tac "$folder/pids" | while read -r pid; do kill "$pid" 2> /dev/null || true; done
    rm "$folder/pids"
}

case ${1:-} in
    start | stop) "$1" ;;
    *) sed -n 2,5p "$0" >&2; exit 2 ;;
esac
