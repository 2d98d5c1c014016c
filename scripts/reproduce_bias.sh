#!/usr/bin/env bash
# What a ViT takes over from a CNN beside its accuracy, and a CNN from a ViT: both directions on the handwritten digits at
# 16 px with three controls, three seeds: 69 runs and two teachers, estimated at one hour on two CPU cores; no GPU, no
# download. Nothing is published at this size: kdrun's own grids are outputs/published/bias_cnn_to_vit.md and
# bias_vit_to_cnn.md. P0's grids (224 px, pretrained networks, a GPU): kdrun train -m sweep=bias_cnn_to_vit_224.
#   scripts/reproduce_bias.sh [cnn_to_vit|vit_to_cnn] [seed=0 row=LM launcher.processes=2 …]
set -euo pipefail
cd "$(dirname "$0")/.."
directions="cnn_to_vit vit_to_cnn"
case ${1:-} in cnn_to_vit | vit_to_cnn) directions=$1 && shift ;; esac
given="" same=yes place=()
for word in "$@"; do
  case $word in
    name=*) given=${word#name=} ;;
    output_root=*) place=("$word") ;;
    seed=* | row=* | column=* | dataset.workers=* | launcher.*) ;;
    *) same="" ;; # another ledger: the training's last line names it
  esac
done
for direction in $directions; do
  scripts/sweep "bias_$direction" "$@"
  if [ -n "$given$same" ]; then .venv/bin/kdrun bias "${given:-bias_$direction}" ${place[@]+"${place[@]}"}; fi
done
