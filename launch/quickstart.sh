#!/usr/bin/env bash
# The whole loop on this machine: sets up .venv, then runs the embedded default.
# Arguments go on to `dynatok launch`:  bash launch/quickstart.sh --seed 7
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
exec .venv/bin/dynatok launch launch/configs/tiny.yaml "$@"
