# make demo   a first look: environment, package, a dataset from text that every Python ships
# make test   everything that CI runs, but the linters
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
RUNS ?= 5

.PHONY: demo test lint format torture bench-build bench-read clean

demo: $(VENV)/.base
	$(BIN)/lance-prep build sample
	$(BIN)/lance-prep info sample.lance
	$(BIN)/lance-prep show sample.lance --rows 5

test: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The long runs: not in `make test`.
torture: $(VENV)/.dev
	$(BIN)/python -m pytest -m torture --timeout 3600

bench-build: $(VENV)/.bench
	$(BIN)/python tests/benchmarks/bench_build.py --runs $(RUNS)

bench-read: $(VENV)/.bench
	PYTHONPATH=. $(BIN)/python tests/benchmarks/bench_read.py --rounds $(RUNS)

$(VENV)/.base: pyproject.toml constraints.txt
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

clean:
	rm -rf $(VENV) sample.lance build dist .pytest_cache .mypy_cache .ruff_cache
