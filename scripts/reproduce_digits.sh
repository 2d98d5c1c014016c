#!/usr/bin/env bash
# Thirteen methods beside the independent student on 10 % of the handwritten digits, five seeds: 10 to 15 minutes on two
# CPU cores, an estimate; no GPU, no download. Nothing is published: outputs/published/ has kdrun's own table.
#   scripts/reproduce_digits.sh [seed=0 row=KD …]
set -euo pipefail
exec "$(dirname "$0")/sweep" digits_table "$@"
