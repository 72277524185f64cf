PYTHON ?= python3
BIN := .venv/bin
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout 300 --nbval-sanitize-with tests/notebooks/sanitize.cfg
# Two test processes of one thread each: threads of two processes on the same cores would wait for each other.
ONE := OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help tour test notebooks lint lab benchmark clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

tour: .venv/.core  ## set everything up, then tune with one method of each group and show the table and the figure
	$(BIN)/python -m vtlite tour

test: .venv/.dev lint  ## every test and every notebook
	$(ONE) $(BIN)/python -m pytest -n 2 --dist loadfile tests
	$(ONE) $(BIN)/python -m pytest -n 2 --dist loadfile $(NBVAL) notebooks solutions
	$(BIN)/python -m tests.checks

lint: .venv/.dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lab: .venv/.lab  ## open the lessons in JupyterLab
	$(BIN)/jupyter lab notebooks

notebooks: .venv/.dev  ## run every lesson and solution again, keep the outputs, make the exercises
	$(BIN)/python tests/notebooks/execute.py
	$(BIN)/python -m vtlite classroom release

benchmark: .venv/.core  ## measure all methods on all tasks again (some hours; continues where it stopped)
	$(BIN)/python -m vtlite bench --update benchmarks/README.md

clean:  ## remove the virtual environment and caches
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache

# One stamp per set of packages: nothing is installed again until pyproject.toml changes.
.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"vtlite needs Python 3.11 or newer, found {sys.version.split()[0]}; try: make PYTHON=python3.11 tour")'
	$(PYTHON) -m venv .venv

.venv/.core: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

.venv/.lab: .venv/.core
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[lab]'
	touch $@

.venv/.dev: .venv/.core
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@
