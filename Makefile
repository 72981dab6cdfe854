PYTHON ?= python3
SECONDS_OF_TRAINING ?= 60
WORKERS ?= 2
FAULTS ?= all
CASES ?= 100000
SECONDS ?= 120
MINUTES ?= 30

.PHONY: test env demo-env lint demo bench sweep faults soak fuzz tools-env audit coverage mutants

test: env lint
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

env:
	@$(PYTHON) tests/env/bootstrap.py

lint: env
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python tests/env/imports.py

demo-env:
	@$(PYTHON) tests/env/bootstrap.py demo

tools-env:
	@$(PYTHON) tests/env/bootstrap.py tools

demo: demo-env
	.venv/bin/python -m glance_core demo --seconds $(SECONDS_OF_TRAINING)

sweep: env
	GLANCE_SWEEP=1 OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(WORKERS) --junitxml=sweep.xml \
		tests/host/test_architectures.py tests/host/test_phase_split_sampler.py tests/host/test_training_architectures.py \
		tests/host/test_gradients.py tests/host/test_video_with_sound.py tests/host/test_preflight_gradients.py \
		tests/host/test_module_names.py tests/host/test_trained_pairs.py tests/host/test_other_methods.py \
		tests/host/test_quantised_bases.py tests/host/test_gguf_bases.py
	.venv/bin/python tests/host/write_models_page.py

faults: env
	GLANCE_FAULTS=$(FAULTS) OMP_NUM_THREADS=1 .venv/bin/python -m pytest -rP tests/host/test_faults.py -k "no_fault"

soak: env
	GLANCE_RUNS=500 GLANCE_SOAK=$(SECONDS) OMP_NUM_THREADS=1 .venv/bin/python -m pytest -rP tests/host/test_many_runs.py tests/host/test_soak.py

bench: env
	.venv/bin/python -m benchmarks.report --minutes $(MINUTES) --measure $(BENCHMARKS)

fuzz: env
	OMP_NUM_THREADS=1 GLANCE_CASES=$(CASES) .venv/bin/python -m pytest -q -s tests/core/test_fuzz.py
	OMP_NUM_THREADS=1 .venv/bin/python tests/core/fuzz_reader.py -runs=$(CASES)

audit: tools-env
	.venv/bin/python tests/env/audit.py

# The deselected test fills a disk, and coverage could not write its own file then.
coverage: tools-env
	.venv/bin/coverage erase
	OMP_NUM_THREADS=1 .venv/bin/coverage run -m pytest tests/core -q --deselect tests/core/test_lora_writer.py::test_really_full_disk_gives_one_sentence
	.venv/bin/coverage combine -q
	.venv/bin/coverage report

mutants: tools-env
	OMP_NUM_THREADS=1 .venv/bin/python tests/env/mutants.py
