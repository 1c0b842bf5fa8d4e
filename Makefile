# What a developer runs is what CI runs: `make check`. A fresh machine needs no other set-up.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
WORKERS ?= 2
# One thread a process: the simulator runs in parallel over workloads by itself.
export OMP_NUM_THREADS := 1

.PHONY: help setup demo demo-live test format check wheel-test bench clean

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## Make .venv and install Trimtab with its tools.

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(STAMP)  ## See it work on the bundled trace.
	$(BIN)/trimtab demo

demo-live: $(STAMP)  ## See a policy on real engines: in shadow first, then serving.
	$(BIN)/trimtab demo-live

test: $(STAMP)  ## Run the fast tests, on WORKERS cores (2 by default).
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

format: $(STAMP)  ## Format the code and mend what lint can mend.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: $(STAMP)  ## Format check, lint, types, fast tests.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	mkdir -p build/typing
	ln -sfn ../.. build/typing/trimtab
	$(BIN)/mypy
	$(MAKE) test

# The wheel's environment borrows the packages of .venv through a .pth file. Python reads no .pth
# file of a borrowed folder, so the editable Trimtab there stays out of sight.
WHEEL_VENV := build/wheel-venv
WHEEL_RUN := build/wheel-test
wheel-test: $(STAMP)  ## Build the wheel and run the tests on it, outside the checkout.
	rm -rf build/lib build/bdist.* build/dist $(WHEEL_VENV) $(WHEEL_RUN)
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/dist .
	$(BIN)/python -m venv $(WHEEL_VENV)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > "$$($(WHEEL_VENV)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/borrowed.pth"
	$(WHEEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --no-index --no-deps --force-reinstall build/dist/*.whl
	mkdir -p $(WHEEL_RUN)
	cp -r tests pyproject.toml $(WHEEL_RUN)
	cd $(WHEEL_RUN) && ../wheel-venv/bin/python -c \
	  "import trimtab; assert '/wheel-venv/' in trimtab.__file__, trimtab.__file__"
	cd $(WHEEL_RUN) && ../wheel-venv/bin/python -m pytest -q

bench: $(STAMP)  ## Run every benchmark.
	for file in benchmarks/*.py; do test ! -e "$$file" || $(BIN)/python "$$file"; done

clean:  ## Remove what was built, not .venv or runs/.
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
