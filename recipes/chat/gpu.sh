#!/usr/bin/env bash
# Both tasks of the chat recipe on one GPU, ten times the completions, three seeds, several runs at a time:
#
#   bash recipes/chat/gpu.sh MODEL OUT [flags of recipes/side_by_side.py]
#
# MODEL and OUT as in run.sh. `nonpareil compare` on the files named below gives the same, one run after the other.
set -euo pipefail
model=${1:-models/smollm2} out=${2:-nonpareil-chat-gpu}
here=$(dirname "$0")
mkdir -p "$out"
[ -f "$model/config.json" ] || python "$here/prepare.py" --output_dir "$model"
[ -f "$out/prompts/sums-test.jsonl" ] || python "$here/prompts.py" --output_dir "$out/prompts"
for task in sums advice; do
  sed -e "s#models/smollm2#$model#g" -e "s#nonpareil-chat-gpu#$out#g" "$here/../chat-$task-gpu.yaml" > "$out/$task.yaml"
done
python "$here/../side_by_side.py" "$out/sums.yaml" "$out/advice.yaml" "${@:3}"
