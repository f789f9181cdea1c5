#!/usr/bin/env bash
# Exactness and speed on this machine's GPU, written as Markdown to a folder. Installs nothing: any
# Python with torch, transformers, msgspec and numpy will do for exactness and packing; the learner
# steps need trl, datasets, peft and deepspeed as well. Without a GPU every part is a small trial.
#
#   bash benchmarks/gpu.sh                          runs/gpu-DATE/report.md
#   bash benchmarks/gpu.sh OUT                      OUT/report.md
#   bash benchmarks/gpu.sh OUT --parts exactness    one part of it; --help names them
#   PYTHON=python3.12 bash benchmarks/gpu.sh        with another Python
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
