#!/usr/bin/env bash
# The experiment on a real model (bench real, and bench stale where there is one) within a number of
# minutes, on a machine that has torch, transformers and a GPU. It installs nothing: what is
# missing there (msgspec) comes as wheels, the model as a folder or as the parts that
# `python -m benchmarks._model_parts pack` wrote. Without a GPU it runs too, slowly.
#
#   bash benchmarks/gpu_real.sh OUT                                  model: smollm2, 8 minutes
#   MODEL=FOLDER bash benchmarks/gpu_real.sh OUT                     another chat model
#   PARTS=FOLDER WHEELS=FOLDER MINUTES=3 bash benchmarks/gpu_real.sh OUT
#   REAL="--steps 4 --tasks 4" bash benchmarks/gpu_real.sh OUT       more arguments of bench real
#
# STALE_MINUTES: how many of the minutes are for bench stale (default: half, where it exists).
# JOBS: processes that share the GPU (default: what its memory and the cores have room for).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
  "" | -*)
    sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit $(($# == 0 ? 2 : 0))
    ;;
esac
out=$1
python=${PYTHON:-python3}
minutes=${MINUTES:-8}
model=${MODEL:-smollm2}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

if [ -n "${WHEELS:-}" ]; then
  for wheel in "$WHEELS"/msgspec-*.whl; do
    "$python" -m zipfile -e "$wheel" "$work/site"
  done
  export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
fi
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
"$python" - << 'EOF'
import importlib, sys
import torch
names = ("msgspec", "numpy", "torch", "transformers", "safetensors", "rich", "matplotlib")
said, missing = [], []
for name in names:
    try:
        said.append(f"{name} {getattr(importlib.import_module(name), '__version__', '')}".strip())
    except ImportError:
        missing.append(name)
device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
print(f"gpu_real: Python {sys.version.split()[0]}, {', '.join(said)}; {device}")
if set(missing) - {"matplotlib"}:
    sys.exit(f"gpu_real: {', '.join(missing)} cannot be imported; install it, or set WHEELS")
EOF
if [ -n "${PARTS:-}" ]; then
  model=$work/model
  "$python" -m benchmarks._model_parts join "$PARTS" "$model"
fi

jobs=${JOBS:-$("$python" - << 'EOF'
import os, torch
gpu = torch.cuda.is_available()
room = torch.cuda.get_device_properties(0).total_memory // 9_000_000_000 if gpu else 1
print(max(1, min(room, os.cpu_count() - 1)))
EOF
)}
if [ "$jobs" != 1 ]; then export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}; fi
stale=0
if [ -f benchmarks/stale.py ]; then
  stale=${STALE_MINUTES:-$(awk "BEGIN { print $minutes / 2 }")}
fi
real=$(awk "BEGIN { print $minutes - $stale }")
# shellcheck disable=SC2086  # several arguments in one variable
"$python" -m benchmarks.real --model "$model" --raw "$out/real.jsonl" --report "$out/real.md" \
  --minutes "$real" --jobs "$jobs" ${REAL:-} || echo "gpu_real: bench real ended with $?" >&2
if [ "$stale" != 0 ]; then
  # shellcheck disable=SC2086
  "$python" -m benchmarks.stale --model "$model" --raw "$out/stale.jsonl" \
    --report "$out/stale.md" --minutes "$stale" --jobs "$jobs" ${STALE:-} ||
    echo "gpu_real: bench stale ended with $?" >&2
fi
