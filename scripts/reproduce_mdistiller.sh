#!/usr/bin/env bash
# RepDistiller's and mdistiller's CIFAR-100 benchmark with every method that has published settings: seven pairs of one
# family (same: 330 runs, about 165 GPU-hours) or six of different families (different: 267 runs, about 175), three seeds;
# estimates. Without a word both, one after the other. Expect the figures at the top of conf/sweep/mdistiller_*.yaml.
#   scripts/reproduce_mdistiller.sh [same|different] [row=KD,CRD,DKD seed=0 dataset.root=/path …]
set -euo pipefail
case ${1:-} in same | different) sweeps=$1 && shift ;; *) sweeps="same different" ;; esac
code=0
for sweep in $sweeps; do
  "$(dirname "$0")/sweep" "mdistiller_$sweep" "$@" || code=$?
  if [ "$code" -eq 75 ]; then break; fi # interrupted: everything is saved
done
exit "$code"
