#!/usr/bin/env bash
# Two processes on the CPU: recipes/launch/cpu.sh --config my-run.yaml [--shard_weights true]
# By torchrun, because accelerate's CPU launcher starts one process whatever it is asked for (and is refused).
set -euo pipefail
OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" exec torchrun --standalone --nproc_per_node "${PROCESSES:-2}" -m nonpareil distill "$@"
