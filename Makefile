# make demo   set up the environment and build a dataset from Python's own documentation
# make test   run the tests; CI runs these and `make lint`
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
RUNS ?= 5

.PHONY: demo test lint format notebooks docs picture torture dist check-dist clean
.PHONY: bench-build bench-read bench-pipeline bench-jsonl bench-spark bench-export bench-push bench-dedup

demo: $(VENV)/.base
	$(BIN)/lance-prep build sample
	$(BIN)/lance-prep info sample.lance
	$(BIN)/lance-prep show sample.lance --limit 3

# Two processes take half the time. A file's tests stay in one, since they share servers and datasets.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: $(VENV)/.dev
	$(BIN)/python -m tests.test_notebooks

# The site, in site/. Links are checked; building it needs no network.
docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The picture in the README: the report of `sample`, as chromium draws it.
picture: $(VENV)/.dev
	$(BIN)/python docs/screenshot.py

# Long runs, which `make test` leaves out.
torture: $(VENV)/.dev
	$(BIN)/python -m pytest -m torture --timeout 3600

# Write the packages of a release to dist/.
dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

# Install them in empty environments, for each supported Python that is found.
check-dist: $(VENV)/.dev
	$(BIN)/python -m pytest -m torture --timeout 3600 tests/test_dist.py

bench-build: $(VENV)/.bench
	$(BIN)/python tests/benchmarks/bench_build.py --runs $(RUNS)

bench-read: $(VENV)/.bench
	PYTHONPATH=. $(BIN)/python tests/benchmarks/bench_read.py --rounds $(RUNS)

bench-pipeline: $(VENV)/.bench
	$(BIN)/python tests/benchmarks/bench_pipeline.py --runs $(RUNS)

bench-jsonl: $(VENV)/.bench
	$(BIN)/python tests/benchmarks/bench_jsonl.py --rounds $(RUNS)

bench-export: $(VENV)/.dev
	$(BIN)/python tests/benchmarks/bench_export.py --runs $(RUNS)

bench-push: $(VENV)/.dev
	PYTHONPATH=. $(BIN)/python tests/benchmarks/bench_push.py --runs $(RUNS)

bench-dedup: $(VENV)/.dev
	$(BIN)/python tests/benchmarks/bench_dedup.py --runs $(RUNS)

bench-spark: $(VENV)/.bench
	PYTHONPATH=. $(BIN)/python tests/benchmarks/bench_spark.py --runs $(RUNS)

$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "lance-prep needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) --version); try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
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
	rm -rf $(VENV) sample.lance build dist site .pytest_cache .mypy_cache .ruff_cache
