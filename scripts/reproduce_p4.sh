#!/usr/bin/env bash
# P4: a pretrained DeiT-S teaches a pretrained ResNet-50 on images of your own in class folders, three seeds of 20 epochs,
# beside the student on its own; then loss and accuracy curves of both splits. About half a GPU-hour per 10,000 images, an
# estimate; downloads the weights. P4's 97.29 % is of two classes that are not published: nothing to set beside yours.
#   scripts/reproduce_p4.sh dataset.root=/path/to/folder [seed=0 …]                      try it, without pretrained weights:
#   scripts/reproduce_p4.sh dataset.root=/path seed=0 epochs=1 teacher.recipe.epochs=1 teacher.pretrained=false student.pretrained=false
set -euo pipefail
source "$(dirname "$0")/project"
step "1 of 2: training, and the table"
table vit_to_resnet
if [ -n "$part" ]; then exit 0; fi
step "2 of 2: the curves, and what accuracy alone does not say"
run=$(run_of experiment=p4_vit_to_resnet "seed=$seed")
echo "loss and accuracy of both splits: $run/curves.png"
kdrun eval "$run"
