#!/usr/bin/env bash
# The circle: best-of-N is served, what was served is distilled, and one sample is served in its place. On the embedded demo, so nothing is
# downloaded; a quarter of an hour on two busy cores. From the repository's root (extra `serve`):
#
#   bash recipes/circle.sh [OUT]
#
# 1. `nonpareil serve --groups` answers a client's requests with the best of 8 and keeps their groups;
# 2. `nonpareil curve` says what best-of-N is worth on them;
# 3. `nonpareil distill --groups` makes a policy of them, which needs one draw an answer;
# 4. `nonpareil evaluate` measures it on prompts that nobody asked;
# 5. both models are served, and a client asks the same prompts in three ways: one sample and best-of-8 of the base, one sample of the new policy.
# OUT/table.md has quality, tokens and latency of the three. Whatever is there already is kept: run it again to go on.
# Latencies have the reward's scoring in them, also those of one sample, which need not be scored in use.
# SHORT=1 before it: few requests and two steps, to see that all of it runs here; its figures say nothing.
set -euo pipefail
out=${1:-nonpareil-circle}
here=$(dirname "$0")
requests=480 clients=16 asked=256 distill=()
[ -z "${SHORT:-}" ] || { requests=24 clients=8 asked=8 distill=(--max_steps 2 --per_device_train_batch_size 8); }
mkdir -p "$out"
demo=$(python -c 'import nonpareil.assets as a; print(a.demo_path("policy").parent)')
models=(--reward_model_name_or_path "$demo/demo-rm" --max_completion_length 40)

servers=()
trap '[ ${#servers[@]} -eq 0 ] || kill "${servers[@]}" 2> /dev/null || true' EXIT
start() { # NAME OPTION ...: a server in the background; its address comes into $url
  local log="$out/$1.log"
  : > "$log" # an older one has another address
  nonpareil serve --port 0 "${models[@]}" "${@:2}" > "$log" 2>&1 &
  servers+=($!)
  until url=$(grep -om1 'http://[^ ]*/v1' "$log"); do
    kill -0 "${servers[-1]}" 2> /dev/null || { cat "$log" >&2; exit 1; }
    sleep 0.2
  done
}
stop() { # all servers, once they have written what they keep
  kill "${servers[@]}" && wait "${servers[@]}"
  servers=()
}
ask() { # SPLIT REQUESTS CLIENTS FOLDER --ask NAME=URL,BEST_OF ...
  python "$here/circle_client.py" --prompts "$demo/demo-prompts/$1.parquet" --requests "$2" --clients "$3" --output_dir "$out/$4" "${@:5}"
}

if [ ! -f "$out/served" ]; then
  echo "== best-of-8 is served, and its groups kept"
  start serve --model_name_or_path "$demo/demo-lm" --best_of 8 --groups "$out/groups"
  ask train "$requests" "$clients" served-answers --ask "best=$url,8"
  stop
  touch "$out/served"
fi
groups=$out/groups/text-n8-t1-max40

echo "== what best-of-N is worth on them"
nonpareil curve --groups "$groups"

policy=$out/distilled
if [ ! -f "$out/trained" ]; then
  echo "== what was served is distilled"
  resume=()
  ! compgen -G "$out/distilled/checkpoint-*[0-9]" > /dev/null || resume=(--resume_from_checkpoint true)
  nonpareil distill --method value_distillation --groups "$groups" --evaluate_after false --output_dir "$out/distilled" "${distill[@]}" "${resume[@]}"
  touch "$out/trained"
fi

echo "== how near it is to best-of-N"
[ -f "$out/evaluation/report.json" ] || nonpareil evaluate --model_name_or_path "$policy" --reference_model_name_or_path "$demo/demo-lm" \
  "${models[@]}" --dataset_name "$demo/demo-prompts/test.parquet" --max_prompts "$asked" --kl_dtype auto --output_dir "$out/evaluation"

if [ ! -f "$out/asked" ]; then
  echo "== the three ways of serving"
  start base --model_name_or_path "$demo/demo-lm"
  base=$url
  start distilled --model_name_or_path "$policy"
  ask test "$asked" 4 answers --ask "base=$base,1" --ask "best=$base,8" --ask "distilled=$url,1"
  stop
  touch "$out/asked"
fi
python "$here/circle_table.py" --answers "$out/answers" --evaluation "$out/evaluation" | tee "$out/table.md"
