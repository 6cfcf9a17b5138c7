.PHONY: demo test slow lint types bench

demo:  ## distil the embedded models, under 5 minutes on 2 cores
	nonpareil distill

test:  ## what .ci/run runs
	pytest

slow:  ## tests that take minutes
	pytest -m slow

lint:  ## style, format and floors
	ruff check .
	ruff format --check .
	lint-imports --no-cache

types:
	mypy

bench:  ## each prints what it measured
	set -e; for script in benchmarks/*.py; do echo "== $$script"; python "$$script"; done
