#!/usr/bin/env bash
# The circle: best-of-N is served, what was served is distilled, and one sample is served in its place. On the embedded demo, so nothing is
# downloaded; about a quarter of an hour a seed on two busy cores. From the repository's root (extra `serve`):
#
#   SEEDS="0 1 2" bash recipes/circle.sh [OUT]
#
# For each seed, in OUT/seed-<seed> (SEEDS is 0 where it is not set):
# 1. `nonpareil serve --groups` answers a client's requests with the best of 8 and keeps their groups;
# 2. `nonpareil curve` says what best-of-N is worth on them;
# 3. `nonpareil distill --groups` makes a policy of them, which needs one draw an answer; `nonpareil interpolate` takes it further the same way;
# 4. `nonpareil evaluate` measures it on prompts that nobody asked;
# 5. both models are served, and a client asks the same prompts in three ways: one sample and best-of-8 of the base, one sample of the new policy.
# A seed is that of the draws that are served and stored, of the training, and of the evaluation's draws; the prompts stay the same.
# OUT/figures.json, table.md and circle.png have quality, tokens, CPU seconds and latency of the three. Whatever is there already is kept: run
# it again to go on, or with more seeds.
# CPU seconds and latencies have the reward's scoring in them, also those of one sample, which need not be scored in use.
# SHORT=1 before it: few requests and two steps, to see that all of it runs here; its figures say nothing.
set -euo pipefail
out=${1:-nonpareil-circle}
here=$(dirname "$0")
requests=480 clients=16 asked=256 distill=()
strength=1.6 # of what was trained; found with other prompts than those asked below: docs/serving.md
[ -z "${SHORT:-}" ] || { requests=24 clients=8 asked=8 distill=(--max_steps 2 --per_device_train_batch_size 8); }
demo=$(python -c 'import nonpareil.assets as a; print(a.demo_path("policy").parent)')
models=(--reward_model_name_or_path "$demo/demo-rm" --max_completion_length 40)

servers=()
trap '[ ${#servers[@]} -eq 0 ] || kill "${servers[@]}" 2> /dev/null || true' EXIT
start() { # NAME OPTION ...: a server in the background; its address comes into $url
  local log="$run/$1.log"
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
  python "$here/circle_client.py" --prompts "$demo/demo-prompts/$1.parquet" --requests "$2" --clients "$3" --seed "$seed" --output_dir "$run/$4" "${@:5}"
}
timed() { # FILE COMMAND ...: user and system CPU seconds of a command that began at nothing, into FILE
  local TIMEFORMAT='%U %S'
  { time "${@:2}" 2>&3; } 3>&2 2> "$1.part"
  mv "$1.part" "$1"
}

runs=()
for seed in ${SEEDS:-0}; do
  run=$out/seed-$seed
  runs+=("$run")
  mkdir -p "$run"
  if [ ! -f "$run/served" ]; then
    echo "== seed $seed: best-of-8 is served, and its groups kept"
    start serve --model_name_or_path "$demo/demo-lm" --best_of 8 --groups "$run/groups"
    ask train "$requests" "$clients" served-answers --ask "best=$url,8"
    stop
    touch "$run/served"
  fi
  groups=$run/groups/text-n8-t1-max40

  policy=$run/stronger
  if [ ! -f "$run/trained" ]; then
    echo "== seed $seed: what best-of-N is worth on them"
    nonpareil curve --groups "$groups"

    echo "== seed $seed: what was served is distilled"
    train=(nonpareil distill --method value_distillation --groups "$groups" --seed "$seed" --evaluate_after false --output_dir "$run/distilled" "${distill[@]}")
    if [ ! -e "$run/distilled" ]; then
      timed "$run/train-cpu-seconds" "${train[@]}"
    else # a training that was cut short: what the whole took is not known
      rm -f "$run/train-cpu-seconds"
      resume=()
      ! compgen -G "$run/distilled/checkpoint-*[0-9]" > /dev/null || resume=(--resume_from_checkpoint true)
      "${train[@]}" "${resume[@]}"
    fi
    nonpareil interpolate --model_name_or_path "$run/distilled" --reference_model_name_or_path "$demo/demo-lm" --strength "$strength" \
      --output_dir "$policy" --overwrite
    touch "$run/trained"
  fi

  if [ ! -f "$run/evaluation/report.json" ]; then
    echo "== seed $seed: how near it is to best-of-N"
    nonpareil evaluate --model_name_or_path "$policy" --reference_model_name_or_path "$demo/demo-lm" "${models[@]}" \
      --dataset_name "$demo/demo-prompts/test.parquet" --max_prompts "$asked" --num_generations 4 --num_reference_samples 8 --seed "$seed" \
      --kl_dtype auto --output_dir "$run/evaluation"
  fi

  if [ ! -f "$run/asked" ]; then
    echo "== seed $seed: the three ways of serving"
    start base --model_name_or_path "$demo/demo-lm"
    base=$url
    start distilled --model_name_or_path "$policy"
    ask test "$asked" 4 answers --ask "base=$base,1" --ask "best=$base,8" --ask "distilled=$url,1"
    stop
    touch "$run/asked"
  fi
done
python "$here/circle_table.py" --figures "$out/figures.json" --runs "${runs[@]}" | tee "$out/table.md"
python "$here/circle_picture.py" --figures "$out/figures.json" --output "$out/circle.png"
