#!/usr/bin/env bash
# P2: VGG-16 and VGG-19 -> VGG-11 on CIFAR-100, all of its tasks, or one of them:
#   methods   SI, LM, LS, DKD, Hints, CRD; how close each is to the teacher (KL); the Grad-CAM comparison
#   capacity  VGG-16 beside VGG-19 as the teacher
#   colour    VGG-16 fine-tuned on colour-jittered images teaches by CRD: what do jittered test images cost whom?
# Three seeds of 200 epochs: about 5, 6 and 1 GPU-hours, an estimate. No accuracies are published; P2 says that every
# method beat the independent student, that VGG-19 can teach better, and that CRD from the colour-invariant teacher is
# more robust. Downloads CIFAR-100 unless dataset.root= names a copy.
#   scripts/reproduce_p2.sh [methods|capacity|colour] [seed=0 dataset.root=/path …]      try it: epochs and limits, as in
#   scripts/reproduce_p2.sh seed=0 epochs=1 teacher.recipe.epochs=1 dataset.train_limit=1000 dataset.test_limit=500
# P2's eleven checkpoints, in outputs/: teachers/cifar100/vgg16/ and vgg19/ (1, 2), runs/cifar100/none-vgg16/none/ (3, the
# colour-invariant teacher), none-vgg11/none and /ls, vgg16-vgg11/kd, /dkd, /fitnet_joint and /crd_inbatch (4-9),
# vgg16-vgg11/crd_inbatch with the colour-invariant teacher (10), vgg19-vgg11/kd (11). `kdrun list runs` shows them all.
set -euo pipefail
tasks="methods capacity colour"
case ${1:-} in methods | capacity | colour) tasks=$1 && shift ;; esac
source "$(dirname "$0")/project"

student() { run_of experiment=p2_vgg "$@"; }

methods() {
  step "six ways to teach VGG-11: training, and the table"
  table vgg_methods
  if [ -n "$part" ]; then return; fi
  local method run teacher runs=() weights=()
  teacher=$(teacher_of experiment=p2_vgg)
  for method in none ls kd dkd fitnet_joint crd_inbatch; do
    run=$(student "seed=$seed" "method=$method")
    runs+=("$run")
    weights+=("$run/student.safetensors")
  done
  mkdir -p "${runs[2]}/evals"
  step "how close the students are to the teacher" # as files: SI and LS have not seen it, and are measured beside it too
  kdrun eval "${weights[@]}" experiment=p2_vgg "teacher.checkpoint=$teacher/teacher.safetensors" rank=kl \
    "save=${runs[2]}/evals/kl_ranking.csv" ${settings[@]+"${settings[@]}"}
  step "where they look: Grad-CAM of the teacher, SI, LM, Hints and CRD"
  kdrun gradcam "${runs[2]}" "${runs[0]}" "${runs[4]}" "${runs[5]}" \
    "save=${runs[2]}/evals/distillation_grad_cam_comparison.png"
}

capacity() {
  step "does a larger teacher teach better: training, and the table"
  table vgg_capacity
}

colour() {
  step "colour: the usual teacher, the same trained on with jittered images, and their students on jittered test images"
  table colour_invariance
}

for task in $tasks; do "$task"; done
