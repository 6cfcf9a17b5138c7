#!/usr/bin/env bash
# What the trainings of imdb-frontier.yaml make together: weights averaged by `nonpareil interpolate`, then measured along the
# path from the reference. From the repository's root, behind `nonpareil compare --config recipes/imdb-frontier.yaml`:
#   bash recipes/imdb/average.sh
# About a quarter of an hour on one core. docs/results.md has what it says.
set -euo pipefail

runs=nonpareil-imdb-frontier/runs
out=nonpareil-imdb-average

between() { # a share of one policy and the rest of another
    nonpareil interpolate --strength "$1" --model_name_or_path "$2" --reference_model_name_or_path "$3" --output_dir "$4"
}

path() { # a policy, and its strengths
    nonpareil evaluate --model_name_or_path "$out/$1" --reference_model_name_or_path models/imdb-lm \
        --reward_model_name_or_path models/imdb-rm --reward_prepend_bos true \
        --dataset_name recipes/imdb/prompts/test.parquet --max_prompts 256 --num_generations 4 \
        --num_reference_samples 8 --max_completion_length 40 --kl_dtype auto --strengths "${@:2}" \
        --output_dir "$out/$1-path"
}

value() { echo "$runs/value_distillation/seed-$1/model"; }
regression=$runs/regression/seed-0/model

between 0.5 "$(value 0)" "$(value 1)" $out/two
between 0.66667 $out/two "$(value 2)" $out/three
between 0.76923 $out/three "$regression" $out/three-and-regression
between 0.66667 "$(value 0)" "$regression" $out/one-and-regression

path three-and-regression 0.65 1.3 2.2  # 1.3 is the mean of three and .3 of regression's change
path one-and-regression 0.75 1.5 2.4    # 1.5 is one value's student and half of regression's change
path three 0.5 1 1.5 2.5
