PYTHON ?= python3
SECONDS_OF_TRAINING ?= 60
WORKERS ?= 2

.PHONY: test env demo-env lint demo bench

test: env lint
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

env:
	@$(PYTHON) tests/env/bootstrap.py

lint: env
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

demo-env:
	@$(PYTHON) tests/env/bootstrap.py demo

demo: demo-env
	.venv/bin/python -m glance_core demo --seconds $(SECONDS_OF_TRAINING)

bench: env
	.venv/bin/python -m benchmarks.sampling
	.venv/bin/python -m benchmarks.startup
	.venv/bin/python -m benchmarks.quality
