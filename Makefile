# Every goal sets up what it needs by itself: a virtual environment with the pinned dependencies
# (tools/bootstrap.sh), made at the first call and renewed when they change.
#
#   make demo PYTHON=/path/to/python3.10     with an interpreter of your choice
#   make test ARGS='tests/data -k market'    ARGS goes to the program that the goal runs

# Only the command line sets these: a PYTHON or VENV in the caller's environment means something else.
PYTHON =
VENV = .venv
EXTRAS =
ARGS =
# Folders of photographs, of the goal of that name.
PETA =
MARKET =
IDS =

RUN = $(VENV)/bin/python
# Two runs at a time, where there are two cores.
CORES = $(shell nproc 2> /dev/null || getconf _NPROCESSORS_ONLN)
TABLE_WORKERS = $(shell test $(CORES) -ge 2 && echo 2 || echo 1)
# The same for the tests, a file at a time; 0: all in one process, for a debugger.
TEST_WORKERS = $(shell test $(CORES) -ge 2 && echo 2 || echo 0)
SOURCES = setup.py tfreid tools tests benchmarks
TYPED = tfreid tests/typing

.DEFAULT_GOAL := help
.PHONY: help setup demo tables photographs test test-fast lint format docs bench lock audit clean

help:  ## this list
	@echo 'tfreid: a description in words, a ranked list of person crops'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'PYTHON=path forces the interpreter (3.9, 3.10 or 3.11), VENV=folder the environment,'
	@echo 'EXTRAS=gpu adds what a GPU needs, ARGS=... goes to the program that is run.'

setup:  ## the virtual environment with the pinned dependencies
	@PYTHON='$(PYTHON)' VENV='$(VENV)' EXTRAS='$(EXTRAS)' sh tools/bootstrap.sh

demo: setup  ## the main job on synthetic people: draw, train, evaluate, export, search
	@$(RUN) -m tfreid demo $(ARGS)

tables: setup  ## the paper's comparison of methods, on synthetic people
	@$(RUN) -m tfreid compare --workers=$(TABLE_WORKERS) $(ARGS)

photographs: setup  ## the comparison on photographs; PETA=folder MARKET=folder IDS=folder,folder
	@$(RUN) -m tfreid photographs --peta='$(PETA)' --market='$(MARKET)' --ids='$(IDS)' $(ARGS)

test: setup  ## all tests
	@$(RUN) -m pytest --numprocesses=$(TEST_WORKERS) --dist=loadfile $(ARGS)

test-fast: setup  ## the tests that take seconds
	@$(RUN) -m pytest --numprocesses=$(TEST_WORKERS) --dist=loadfile -m 'not slow' $(ARGS)

lint: setup  ## formatter, linter and type checker, changing nothing
	@$(RUN) -m ruff format --check $(SOURCES)
	@$(RUN) -m ruff check $(SOURCES)
	@$(RUN) -m mypy $(TYPED)

format: setup  ## formats the code and mends what the linter can mend
	@$(RUN) -m ruff check --fix-only --quiet $(SOURCES)
	@$(RUN) -m ruff format $(SOURCES)

docs: setup  ## the documents with an API reference, into site/
	@PYTHON=$(RUN) FOLDER=$(VENV)/documents sh tools/documents.sh $(ARGS)

bench: setup  ## speed of training, input, evaluation and retrieval, into bench/
	@$(RUN) benchmarks/run.py $(ARGS)

lock: setup  ## renews constraints/ after a change of setup.cfg; ARGS=--upgrade for newer versions
	@PYTHON=$(RUN) sh tools/lock.sh $(ARGS)

audit: setup  ## asks a vulnerability service about the locked packages
	@PYTHON=$(RUN) sh tools/audit.sh $(ARGS)

clean:  ## removes the environment and caches; keeps runs, datasets, saved models and bench
	rm -rf $(VENV) build dist site tfreid.egg-info .pytest_cache .ruff_cache .mypy_cache
	find tfreid tools tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
