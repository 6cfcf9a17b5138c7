#!/usr/bin/env bash
# One GPU, unattended: the tests marked gpu, then throughput and memory (benchmarks/gpu.py, which takes the arguments).
# Needs PyTorch with CUDA, transformers, accelerate, peft and this checkout; pytest for the tests.
# Writes benchmarks/results/gpu-NAME.json and a profile beside it for each case; exits non-zero if something failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"  # one GPU, also where there are more
python=${PYTHON:-python3}
status=0

if "$python" -c 'import pytest, hypothesis, beartype' 2>/dev/null; then
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  "$python" -m pytest -m gpu -q -rs 2>&1 | tee "$log" || status=$?
  tests=$(tail -n 1 "$log")
else
  tests="not run: pip install \".[test]\" first"
  echo "tests $tests" >&2
fi

"$python" benchmarks/gpu.py --tests "$tests" "$@" || status=$?
exit "$status"
