#!/usr/bin/env bash
# P1: DeepNN -> LightNN on CIFAR-10, 50 epochs: the table of five seeds, then of the first seed predictions on a folder of
# images and ONNX files of the teacher, plain and quantised. Under one GPU-hour, an estimate; about five hours of one CPU
# core. Expect (P1's README, one run each) Teacher 71.77, Student 66.32, Cosine 65.00, Regressor 65.98: the student alone
# is the best there. kdrun's own: outputs/published/tutorial.md.
#   scripts/reproduce_p1.sh [seed=0 dataset.root=/path images=FOLDER …]          try it: train_limit and epochs, as in
#   scripts/reproduce_p1.sh seed=0 epochs=1 teacher.recipe.epochs=1 dataset.train_limit=1000 dataset.test_limit=500
# images: what is predicted; without it 20 test images, written as PNG files first. What P1 saves is found here:
#   NNDeep.pth                                 outputs/teachers/cifar10/deepnn/s0-…/teacher.safetensors
#   NNLight, ModefiedNNLight, ModifiedNNLightReg   …/runs/cifar10/*-lightnn/{none,cosine,hint_regressor}/…/student.safetensors
#   ImagePredictor[QuantizedFinalized].onnx    in exports/ beside the teacher (P1's own is quantize=dynamic)
set -euo pipefail
source "$(dirname "$0")/project"
step "1 of 3: training, and the table"
table tutorial
if [ -n "$part" ]; then exit 0; fi

words=(experiment=p1_deepnn_lightnn "seed=$seed")
teacher=$(teacher_of "${words[@]}")
networks=("$teacher")
for method in none cosine hint_regressor; do
  run=$(run_of "${words[@]}" "method=$method")
  networks+=("$run")
done

step "2 of 3: predictions on a folder"
folder=$images
if [ -z "$folder" ]; then # a colour jitter of strength nothing: the images as they are
  folder=$teacher/evals/images
  kdrun testset colour brightness=0 contrast=0 saturation=0 hue=0 "save=$folder" experiment=p1_deepnn_lightnn \
    ${settings[@]+"${settings[@]}"} dataset.test_limit=20
fi
for network in "${networks[@]}"; do
  mkdir -p "$network/evals"
  kdrun predict "$network" "path=$folder" top=all "save=$network/evals/predictions.csv,$network/evals/predictions.json"
done

step "3 of 3: ONNX, plain and quantised"
kdrun export "$teacher" quantize=all
