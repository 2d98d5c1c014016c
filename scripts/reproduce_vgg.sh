#!/usr/bin/env bash
# P2's VGG comparison on CIFAR-100: SI, LM, LS, DKD, Hints and CRD for VGG-16 -> VGG-11, or with `capacity` VGG-16 beside
# VGG-19 as the teacher. Three seeds of 200 epochs: about 5 GPU-hours, and 6 more for capacity, an estimate. No
# accuracies are published; P2 says that every method beat the independent student.
#   scripts/reproduce_vgg.sh [methods|capacity] [seed=0 dataset.root=/path …]
set -euo pipefail
sweep=vgg_methods
case ${1:-} in methods | capacity) sweep=vgg_$1 && shift ;; esac
exec "$(dirname "$0")/sweep" "$sweep" "$@"
