#!/usr/bin/env bash
# The CIFAR-100 compression table: five pairs x Student, KD, FitNet, AT, DML, DIST, SRD, SRDwithDIST, three seeds, beside
# the published values. 126 runs of 240 epochs and three teachers: about 80 GPU-hours, an estimate (conf/sweep says from
# what). Expect Student 69.66 to 76.91, KD 72.93 to 78.65, SRDwithDIST up to 80.39; one run of each was published.
# Downloads CIFAR-100 unless dataset.root= names a copy. Kill it whenever you like: the same command goes on.
#   scripts/reproduce_cifar100_table.sh [consistent_teaching|capacity|assistant] [seed=0 row=KD dataset.root=/path …]
# consistent_teaching: which view the teacher sees, about 20 GPU-hours; capacity: four ResNets teach ResNet-14, about 14;
# assistant: ResNet-110 teaches ResNet-32, which teaches ResNet-14, about 3.
set -euo pipefail
sweep=cifar100_table
case ${1:-} in
  consistent_teaching | capacity) sweep=$1 && shift ;;
  assistant) sweep=teacher_assistant && shift ;;
esac
exec "$(dirname "$0")/sweep" "$sweep" "$@"
