#!/usr/bin/env bash
# Thirteen methods beside the independent student on 10 % of the handwritten digits, five seeds: 16 minutes on two CPU
# cores (measured); no GPU, no download. Nothing is published: kdrun's own table is outputs/published/digits_table.md.
#   scripts/reproduce_digits.sh [seed=0 row=KD …]
set -euo pipefail
exec "$(dirname "$0")/sweep" digits_table "$@"
