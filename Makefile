# make demo   set up what the demo needs and run it
# make test   set up what the tests need; lint, types, tests (one opens the report in Chromium where that is installed)
# make setup  the set-up of `make test` alone
# make bench  set up PEFT and TRL too; speed and memory beside them (benchmarks/README.md); two hours on two cores
#
# Everything is installed into .venv, which may already be there. A stamp file notes what has been installed: it is
# older than pyproject.toml or constraints.txt exactly when there is something to do, so a second call is immediate.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
JOBS ?= 2
# Set PYTHON to choose an interpreter; otherwise the first of these that is new enough.
PYTHON ?=
PYTHONS := $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11)
NEW_ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

.PHONY: help setup demo test lint bench clean

help:
	@sed -n 's/^# make/make/p' Makefile

setup: $(VENV)/.stamp-dev

demo: $(VENV)/.stamp-demo
	@$(BIN)/lora demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.stamp-bench
	$(BIN)/python benchmarks/speed.py --output runs/bench
	$(BIN)/python benchmarks/speed.py --part scaling --turns 2 --output runs/bench

# The order of the two matters where both are asked for: what the tests need includes what the demo needs.
$(VENV)/.stamp-demo: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) install -e '.[demo]' -c constraints.txt
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) install -e '.[dev]' -c constraints.txt
	@touch $(VENV)/.stamp-demo $@

$(VENV)/.stamp-bench: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) install -e '.[bench]' -c constraints.txt
	@touch $(VENV)/.stamp-demo $(VENV)/.stamp-dev $@

# pip is the last thing that venv puts in place: where it is missing, the environment was left half made.
$(BIN)/pip:
	@for python in $(PYTHONS); do \
	    if $$python -c '$(NEW_ENOUGH)' 2>/dev/null; then \
	        echo "$$python -m venv $(VENV)"; exec $$python -m venv $(VENV); \
	    fi; \
	done; \
	echo "error: no Python 3.11 or newer with its venv module among: $(PYTHONS)." >&2; \
	echo "Install one (Debian, Ubuntu: apt install python3-venv) or name it: make PYTHON=/path/to/python3.12" >&2; \
	exit 1

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
