#!/usr/bin/env bash
# P4: a pretrained DeiT-S teaches a pretrained ResNet-50 on images of your own in class folders, three seeds of 20 epochs,
# beside the student on its own: about half a GPU-hour per 10,000 images, an estimate; downloads the weights. P4's 97.29 %
# is of a data set that is not published: nothing to set beside yours.
#   scripts/reproduce_vit_to_resnet.sh dataset.root=/path/to/folder [seed=0 …]
set -euo pipefail
exec "$(dirname "$0")/sweep" vit_to_resnet "$@"
