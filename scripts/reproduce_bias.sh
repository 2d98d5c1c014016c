#!/usr/bin/env bash
# What a ViT takes over from a CNN beside its accuracy, and a CNN from a ViT: both directions on the handwritten digits at
# 16 px with three controls, three seeds: 72 runs and two teachers, of which 69 were measured at two hours of one CPU core
# beside other work; no GPU, no download. Expect no published figure, there is none at this size; kdrun's own are
# outputs/published/bias_*.md. P0's grids (224 px, pretrained networks, a GPU) are
# kdrun train -m sweep=bias_cnn_to_vit_224 and bias_vit_to_cnn_224.
#   scripts/reproduce_bias.sh [cnn_to_vit|vit_to_cnn] [seed=0 row=LM launcher.processes=2 …]
set -euo pipefail
case ${1:-} in cnn_to_vit | vit_to_cnn) directions=$1 && shift ;; *) directions="cnn_to_vit vit_to_cnn" ;; esac
code=0
for direction in $directions; do
  "$(dirname "$0")/sweep" "bias_$direction" "$@" || code=$?
  if [ "$code" -eq 75 ]; then break; fi # interrupted: everything is saved
done
exit "$code"
