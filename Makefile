# make demo, test, check, notebooks, bench, bench-gpu: each sets up what it needs in its own virtual environment first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test check notebooks bench bench-gpu clean
.DEFAULT_GOAL := test

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "foretune needs Python 3.11 or newer; try: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.core

demo: $(VENV)/.core
	$(BIN)/foretune run studies/lr_width_transfer

test: check
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: $(VENV)/.dev foretune.db
	$(BIN)/jupyter-execute --inplace notebooks/*.ipynb

foretune.db:
	@echo "notebooks read the demo's ledger: run make demo first" >&2; exit 2

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

bench-gpu: $(VENV)/.dev
	$(BIN)/python -m benchmarks trainer packing diagnostics

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
