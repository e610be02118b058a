#!/usr/bin/env bash
# The paper's scheme and ours, from random weights, on the same boxes and for the same time, one core each:
#
#   BOXES="box_101.h5 box_102.h5 box_103.h5" VALIDATION=box_104.h5 TEST=box_105.h5 tools/side_by_side.sh [OUT]
#
# The paper's settings are those that `cosmofields tune` found (docs/tuning.md). Killed, the same command goes on.
set -euo pipefail

out=${1:-side-by-side}
boxes=(--boxes ${BOXES:?"BOXES=\"a.h5 b.h5\""} --validation ${VALIDATION:?"VALIDATION=c.h5"})
boxes+=(--precision 32-true --crop 64)
first=(--ema-decay 0.99)
# The batch norm of crops is not that of a box: the velocities were settled further.
further=(--ema-decay 0.97 --steps 20 --settle-steps 100 --steps-per-epoch 20)
cf=${COSMOFIELDS:-cosmofields}

paper() {
    local it=(--architecture paper --widths 16 32 64 --dropout 0.0232 --learning-rate 1.61e-3 --weighting bin "${boxes[@]}")
    $cf train density "${it[@]}" "${first[@]}" --steps 600 --settle-steps 80 --steps-per-epoch 40 --out "$out/first/paper-short"
    $cf train velocity "${it[@]}" "${first[@]}" --steps 220 --settle-steps 40 --steps-per-epoch 20 --out "$out/first/paper-short"
    further paper-short "${it[@]}"
}

ours() {
    $cf train density "${boxes[@]}" "${first[@]}" --steps 320 --settle-steps 80 --steps-per-epoch 40 --out "$out/first/residual-short"
    $cf train velocity "${boxes[@]}" "${first[@]}" --steps 160 --settle-steps 40 --steps-per-epoch 20 --out "$out/first/residual-short"
    further residual-short "${boxes[@]}"
}

further() {
    mkdir -p "$out/$1"
    cp "$out/first/$1"/density.{json,safetensors} "$out/$1"
    $cf train velocity "${@:2}" "${further[@]}" --start "$out/first/$1" --out "$out/$1"
}

export OMP_NUM_THREADS=1
paper &
other=$!
ours
wait $other
for model in paper-short residual-short; do
    $cf score --model "./$out/$model" --boxes $VALIDATION ${TEST:?"TEST=d.h5"} --out "$out/$model.json"
done
