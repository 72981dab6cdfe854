PYTHON ?= python3

.PHONY: test env lint bench

test: env lint
	.venv/bin/python -m pytest

env:
	@$(PYTHON) tests/env/bootstrap.py

lint: env
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: env
	.venv/bin/python -m benchmarks.sampling
