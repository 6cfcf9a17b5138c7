.PHONY: demo test slow lint types bench gpu

demo:  ## distil the embedded models, under 5 minutes on 2 cores
	nonpareil distill

test:  ## what .ci/run runs
	pytest -n 2 --dist loadfile

slow:  ## tests that take minutes
	pytest -m slow

lint:  ## style, format and floors
	ruff check .
	ruff format --check .
	lint-imports --no-cache

types:
	mypy

bench:  ## each prints what it measured
	set -e; for name in allocator estimators memory rollouts trl_dpo; do \
	  echo "== benchmarks/$$name.py"; python "benchmarks/$$name.py"; done

gpu:  ## tests and benchmarks on one GPU
	bash benchmarks/gpu.sh
