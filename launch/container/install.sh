#!/usr/bin/env bash
# What both container recipes run, as root in a clean Debian 12 with the checkout in /opt/dynatok:
#
#   bash /opt/dynatok/launch/container/install.sh cpu        or gpu
#
# The environment is /opt/dynatok/.venv, from the same locks as everywhere. Whoever runs the
# container, under whatever number, may read all of it and has to write none of it.
set -euo pipefail
kind=${1:-cpu}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# g++: DeepSpeed and torch compile small pieces. libnuma1, libgomp1: vLLM. tini: hands signals on.
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install -y --no-install-recommends \
  ca-certificates g++ libgomp1 libnuma1 python3.11 python3.11-dev python3.11-venv tini
rm -rf /var/lib/apt/lists/*

case "$kind" in
  cpu) PIP_NO_CACHE_DIR=1 bash launch/setup.sh ;;
  gpu) PIP_NO_CACHE_DIR=1 bash launch/setup.sh --gpu ;;
  *)
    echo "install: unknown kind '$kind'; write cpu or gpu" >&2
    exit 2
    ;;
esac
# Compiled now: in a container that can only be read, every start would do it again.
.venv/bin/python -m compileall -q actor benchmarks dynatok_online launch learner protocol
chmod -R a+rX .
ln -sf "$PWD/.venv/bin/dynatok" /usr/local/bin/dynatok
