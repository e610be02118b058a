#!/usr/bin/env bash
# Train and calibrate a model that ships, from seeds to weights:
#
#   BOXES="box_101.h5 box_102.h5 box_103.h5" VALIDATION=box_104.h5 tools/train_model.sh NAME [OUT]   # `make train MODEL=NAME` calls it
#
# NAME: default, no-mass, sparse, paper. Killed, the same command goes on. `no-mass` and `sparse` begin with the weights of
# `default`, which is trained first unless OUT/default is there. CALIBRATION: boxes that set the errors' scale, default: VALIDATION.
set -euo pipefail

name=${1:?"name a model: default, no-mass, sparse or paper"}
out=${2:-models}
# In the precision of the weights that ship.
boxes=(--boxes ${BOXES:?"BOXES=\"a.h5 b.h5\""} --validation ${VALIDATION:?"VALIDATION=c.h5"} --precision bf16-mixed)
further=(--learning-rate 1e-3 --ema-decay 0.995 --settle-steps 100)
cf=${COSMOFIELDS:-cosmofields}

default() {
    local first=$out/default/first second=$out/default/second
    $cf train density "${boxes[@]}" --steps 3000 --settle-steps 600 --out "$first"
    $cf train velocity "${boxes[@]}" --steps 3500 --settle-steps 600 --out "$first"
    mkdir -p "$second"
    cp "$first"/density.{json,safetensors} "$second"
    $cf train velocity "${boxes[@]}" "${further[@]}" --start "$first" --steps 1200 --settle-steps 300 --out "$second"
    $cf train momentum "${boxes[@]}" --widths 16 32 64 --steps 700 --settle-steps 100 --ema-decay 0.99 --out "$second"
    $cf train density "${boxes[@]}" --learning-rate 1.5e-3 --ema-decay 0.997 --start "$first" --steps 1500 --settle-steps 200 --out "$out/default"
    $cf train velocity "${boxes[@]}" "${further[@]}" --start "$second" --steps 500 --out "$out/default"
    $cf train momentum "${boxes[@]}" --widths 16 32 64 --learning-rate 1e-3 --ema-decay 0.99 --start "$second" --steps 200 --settle-steps 100 --out "$out/default"
}

# Other halos: $1, and the options that say which.
other() {
    local to=$out/$1
    shift
    [ -e "$out/default/velocity.json" ] || default
    $cf train density "${boxes[@]}" "${further[@]}" "$@" --start "$out/default" --steps 400 --out "$to"
    $cf train velocity "${boxes[@]}" "${further[@]}" "$@" --start "$out/default" --steps 500 --out "$to"
}

case $name in
default) default ;;
no-mass) other no-mass --number-density 3e-3 --weighting number ;;
sparse) other sparse --number-density 1e-4 3e-4 1e-3 ;;
paper)
    here=$(dirname "${BASH_SOURCE[0]}")
    for target in density velocity momentum; do
        $cf train "$here/../docs/examples/paper.toml" --target $target "${boxes[@]}" --out "$out/paper"
    done
    ;;
*)
    echo "No recipe for '$name'; there are default, no-mass, sparse, paper" >&2
    exit 2
    ;;
esac
[ "$name" = paper ] || $cf calibrate --model "$out/$name" --boxes $BOXES --validation ${CALIBRATION:-$VALIDATION}
