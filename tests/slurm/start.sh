#!/bin/bash
# Start a one-node Slurm cluster on loopback, without systemd, for the tests: tests/slurm/start.sh DIR
# Needs root, and Debian's slurm-wlm and munge (installed with apt-get if they are missing).
# Writes the configuration, the logs and the process ids into DIR; commands then find the cluster by
#   export SLURM_CONF=DIR/slurm.conf
# tests/slurm/stop.sh DIR ends it.
set -euo pipefail

dir=$(realpath "${1:?usage: start.sh DIR (a new directory)}")
fail() { echo "start.sh: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "needs root: munged must become the user munge, slurmd must start jobs"
[ ! -e "$dir/slurm.conf" ] || fail "$dir holds a cluster already: tests/slurm/stop.sh $dir"
if ! command -v slurmctld slurmd srun munged >/dev/null; then
    command -v apt-get >/dev/null || fail "needs slurmctld, slurmd, srun and munged; no apt-get to install them"
    echo "start.sh: installing slurm-wlm and munge" >&2
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge >/dev/null ||
        fail "apt-get install slurm-wlm munge failed"
fi
id munge >/dev/null 2>&1 || fail "there is no user munge: the package munge makes it"

mkdir -p "$dir"/{state,spool,munge}
# munged refuses a socket, a key or a log below a directory that others may write to.
chown munge: "$dir/munge"
chmod 755 "$dir" "$dir/munge"
dd if=/dev/urandom of="$dir/munge/key" bs=128 count=1 status=none
chown munge: "$dir/munge/key"
chmod 400 "$dir/munge/key"

node=$(hostname -s)
cores=$(nproc --all)
memory=$(awk '/^MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
cat > "$dir/slurm.conf" <<EOF
ClusterName=cosmofields-tests
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
SlurmctldPort=6917
SlurmdPort=6918
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
# A machine of one core still runs two jobs of one.
SlurmdParameters=config_overrides
ReturnToService=2
NodeName=$node NodeAddr=127.0.0.1 CPUs=$((cores > 2 ? cores : 2)) RealMemory=$memory State=UNKNOWN
PartitionName=short Nodes=$node Default=YES MaxTime=60 State=UP
EOF
export SLURM_CONF="$dir/slurm.conf"

runuser -u munge -- munged --socket="$dir/munge/socket" --key-file="$dir/munge/key" --log-file="$dir/munge/log" \
    --pid-file="$dir/munge/pid" --seed-file="$dir/munge/seed" 2>"$dir/munged.err" ||
    fail "munged: $(cat "$dir/munged.err")"
slurmctld -c
slurmd

for _ in $(seq 60); do
    if answer=$(timeout 5 srun --quiet hostname -s 2>"$dir/srun.err") && [ "$answer" = "$node" ]; then
        echo "A Slurm cluster of the node $node ($cores cores): export SLURM_CONF=$SLURM_CONF"
        exit 0
    fi
    sleep 0.5
done
echo "start.sh: srun hostname does not answer: $(cat "$dir/srun.err")" >&2
tail -n 20 "$dir"/slurmctld.log "$dir"/slurmd.log >&2
"$(dirname "$0")/stop.sh" "$dir"
exit 1
