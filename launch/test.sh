#!/usr/bin/env bash
# Everything CI checks: format, lint, types, layers, fast tests, then the tests that start vLLM.
#
#   bash launch/test.sh           all of it
#   bash launch/test.sh --fast    without the tests that start vLLM
#   bash launch/test.sh --slow    and what CI leaves out: every way to cut a batch over ranks, ten
#                                 kills, many random inputs, half an hour of faults (hours in all)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

engine=yes slow=no
case "${1:-}" in
  "") ;;
  --fast) engine=no ;;
  --slow) slow=yes ;;
  *)
    echo "test: unknown argument '$1'; write --fast, --slow or nothing" >&2
    exit 2
    ;;
esac

bash launch/setup.sh || exit 1
export PATH="$PWD/.venv/bin:$PATH"
failed=()
summary=()

step() { # step NAME COMMAND...: runs it, remembers whether it passed and how long it took
  local name=$1 from=$SECONDS verdict=passed
  shift
  echo
  echo "--- $name: $*"
  "$@" || { verdict=FAILED && failed+=("$name"); }
  summary+=("$(printf '%-8s %4d s  %s' "$verdict" $((SECONDS - from)) "$name")")
}

step format ruff format --check .
step lint ruff check .
step layers lint-imports
step types mypy
step "fast tests" python -m pytest -n 2 --dist worksteal -m "not engine and not slow" --durations 5 --durations-min 2
fast=$SECONDS
if [ "$engine" = yes ]; then
  python -m launch.cli model smollm2 ||
    summary+=("skipped       -  tests on a real model, which cannot be fetched: dynatok model smollm2")
  step "engine tests" python -m pytest -m "engine and not browser and not slow" --timeout 900 --durations 5
  if command -v chromium chromium-browser > /dev/null; then
    step "browser tests" python -m pytest -m "browser and not slow" --durations 5
  else
    summary+=("skipped       -  browser tests: no chromium (apt-get install -y chromium)")
  fi
fi
if [ "$slow" = yes ]; then
  step "IFEval's checkers" python -m pip install -q --no-deps -r launch/locks/ifeval.txt
  step "slow tests" python -m pytest -m slow --timeout 7200 --durations 10
fi

echo
printf '%s\n' "${summary[@]}"
echo "without the engine ${fast} s, in all $SECONDS s"
if [ "${#failed[@]}" -gt 0 ]; then
  echo "test: failed: ${failed[*]}" >&2
  exit 1
fi
