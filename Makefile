# `make help` lists the targets. `make test` and `make lint` are what CI runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
RUNS ?= 5

.PHONY: demo help test lint format notebooks docs picture torture dist check-dist clean
.PHONY: bench-build bench-read bench-pipeline bench-jsonl bench-spark bench-export bench-push bench-dedup bench-chat

demo: $(VENV)/.base  ## set up .venv and build a dataset from Python's own documentation
	$(BIN)/lance-prep build sample
	$(BIN)/lance-prep info sample.lance
	$(BIN)/lance-prep show sample.lance --limit 3

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "make %-16s%s\n", $$1, $$2}'

# Two processes take half the time. A file's tests stay in one, since they share servers and datasets.
test: $(VENV)/.dev  ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.dev  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## format the code, and fix what the linter can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: $(VENV)/.dev  ## run the notebooks and write their outputs
	$(BIN)/python -m tests.test_notebooks

docs: $(VENV)/.dev  ## build the documentation in site/, with links checked
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

picture: $(VENV)/.dev  ## draw the picture in the README: the report of `sample`, as chromium shows it
	$(BIN)/python docs/screenshot.py

torture: $(VENV)/.dev  ## run the long tests that `make test` leaves out
	$(BIN)/python -m pytest -m torture --timeout 3600

dist: $(VENV)/.dev  ## write the sdist and the wheel of a release to dist/
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

check-dist: $(VENV)/.dev  ## install them in empty environments, for each supported Python found
	$(BIN)/python -m pytest -m torture --timeout 3600 tests/test_dist.py

bench-build: $(VENV)/.bench  ## measure builds; RUNS=N sets the number of rounds of any benchmark
	$(BIN)/python tests/benchmarks/bench_build.py --runs $(RUNS)

bench-read: $(VENV)/.bench  ## measure reading into tensors
	PYTHONPATH=. $(BIN)/python tests/benchmarks/bench_read.py --rounds $(RUNS)

bench-pipeline: $(VENV)/.bench  ## measure text to tensors, with other libraries
	$(BIN)/python tests/benchmarks/bench_pipeline.py --runs $(RUNS)

bench-jsonl: $(VENV)/.bench  ## measure random access to JSONL
	$(BIN)/python tests/benchmarks/bench_jsonl.py --rounds $(RUNS)

bench-export: $(VENV)/.dev  ## measure exports
	$(BIN)/python tests/benchmarks/bench_export.py --runs $(RUNS)

bench-push: $(VENV)/.dev  ## measure pushes to a Hub on loopback
	PYTHONPATH=. $(BIN)/python tests/benchmarks/bench_push.py --runs $(RUNS)

bench-dedup: $(VENV)/.dev  ## measure deduplication
	$(BIN)/python tests/benchmarks/bench_dedup.py --runs $(RUNS)

bench-chat: $(VENV)/.dev  ## measure conversations to token ids, with transformers
	PYTHONPATH=. $(BIN)/python tests/benchmarks/bench_chat.py --runs $(RUNS)

bench-spark: $(VENV)/.bench  ## measure builds on Spark
	PYTHONPATH=. $(BIN)/python tests/benchmarks/bench_spark.py --runs $(RUNS)

$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "lance-prep needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing); try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

# torch is pinned in constraints.txt so that pip takes a CPU wheel where one is offered.
$(VENV)/.dev: $(VENV)/.base
	$(PIP) --editable '.[dev]'
	touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(PIP) --editable '.[bench]'
	touch $@

clean:  ## remove the environment and what the targets wrote
	rm -rf $(VENV) sample.lance build dist site .pytest_cache .mypy_cache .ruff_cache
