# The two commands to know: `make demo` and `make test`. Everything lives in .venv.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Two workers for two cores; every test runs on one thread.
WORKERS ?= 2
DEMO   ?= demo-run
FAULTS ?= faults-run
# Extra options of pip, e.g. PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
# for torch without CUDA (a tenth of the download).
PIP_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help env demo test slow faults golden lint format types clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

env: $(VENV)/.installed ## create .venv and install dpaflow with its tools (does nothing if up to date)

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "dpaflow needs Python 3.11 or newer; name one with PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: env ## run a whole pipeline on generated data, under 10 minutes on 2 cores
	$(BIN)/python examples/demo/make_data.py $(DEMO)/data
	DEMO_DATA=$(abspath $(DEMO)/data) $(BIN)/dpaflow run examples/demo/pipeline.yaml --out $(DEMO)/run

test: env ## run the tests (real data in ../shared or $DPAFLOW_SHARED are used if there)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup

slow: env ## run the tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup -m slow

faults: env ## kill a loop 50 times at random moments, fill its disk, compare (half an hour)
	$(BIN)/python benchmarks/faults/fault_test.py $(FAULTS)

golden: env ## write tests/argo/golden anew: the examples as Argo workflows
	$(BIN)/python -m tests.argo.make_golden

lint: env ## ruff and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: env ## rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: env ## mypy
	$(BIN)/mypy

clean: ## remove what make has made, .venv included
	rm -rf $(VENV) $(DEMO) $(FAULTS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
