#!/bin/bash
# Run the tests that need Slurm on a one-node cluster of their own: tests/slurm/run.sh [pytest options]
# PYTHON names the interpreter; default: .venv's, or python3.
set -uo pipefail

here=$(dirname "$(realpath "$0")")
root=$(realpath "$here/../..")
venv="$root/.venv/bin/python"
python=${PYTHON:-$([ -x "$venv" ] && echo "$venv" || echo python3)}
dir=$(mktemp -d /tmp/cosmofields-slurm.XXXXXX)

"$here/start.sh" "$dir" || exit 1
trap '"$here/stop.sh" "$dir" && rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM

cd "$root" && SLURM_CONF="$dir/slurm.conf" COSMOFIELDS_SLURM=1 \
    "$python" -m pytest tests/test_clusters.py -k slurm "$@"
