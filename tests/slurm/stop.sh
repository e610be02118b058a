#!/bin/bash
# End the cluster that tests/slurm/start.sh DIR began, with its jobs; its logs stay in DIR.
set -uo pipefail

dir=$(realpath "${1:?usage: stop.sh DIR}")
export SLURM_CONF="$dir/slurm.conf"
[ -e "$SLURM_CONF" ] || { echo "stop.sh: no cluster in $dir" >&2; exit 1; }

if timeout 10 scancel --quiet --user="$(id -un)"; then
    for _ in $(seq 40); do # slurmd ends the processes of the jobs
        [ -z "$(timeout 5 squeue --noheader)" ] && break
        sleep 0.25
    done
fi
for pid_file in "$dir"/slurmd.pid "$dir"/slurmctld.pid "$dir"/munge/pid; do
    [ -s "$pid_file" ] || continue
    pid=$(cat "$pid_file")
    kill "$pid" 2>/dev/null
    for _ in $(seq 40); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.25
    done
    kill -KILL "$pid" 2>/dev/null
done
mv "$SLURM_CONF" "$SLURM_CONF.stopped"
