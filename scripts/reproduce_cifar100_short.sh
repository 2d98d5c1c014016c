#!/usr/bin/env bash
# Real CIFAR-100 in 20 epochs, WRN-16-2 -> WRN-16-1, six methods beside the independent student, three seeds: three to six
# hours on two idle CPU cores with bf16, an estimate. A short schedule: no published figure can be set beside it.
#   scripts/reproduce_cifar100_short.sh [seed=0 dataset.root=/path …]
set -euo pipefail
exec "$(dirname "$0")/sweep" cifar100_short "$@"
