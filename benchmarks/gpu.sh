#!/usr/bin/env bash
# Exactness and speed on this machine's GPU, written as Markdown to a folder. Installs nothing: any
# Python with torch, transformers, msgspec and numpy will do. Without a GPU it runs a small version
# on the CPU.
#
#   bash benchmarks/gpu.sh                     runs/gpu-DATE/report.md
#   bash benchmarks/gpu.sh OUT                 OUT/report.md
#   PYTHON=python3.12 bash benchmarks/gpu.sh   with another Python
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
  -h | --help)
    sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
    ;;
  -*)
    echo "gpu: unknown argument '$1'; write the folder of the report, or nothing" >&2
    exit 2
    ;;
esac
exec "${PYTHON:-python3}" -m benchmarks.gpu "${1:-runs/gpu-$(date +%Y-%m-%d)}"
