# make test, make demo: each complete on a machine with Python 3.10 to 3.12 and git.
# make PYTHON=python3.12 test            choose the Python (default: the first suitable one found)
# make PIP_FLAGS="..." test              further arguments for pip, such as another package index
# make PYTEST_FLAGS="-k vocab" test       arguments for pytest instead of those below

SUITABLE := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
CANDIDATES := python3 python3.12 python3.11 python3.10 python
ifndef PYTHON
PYTHON := $(shell for p in $(CANDIDATES); do $$p -c '$(SUITABLE)' 2>/dev/null && echo $$p && break; done)
endif
BIN := .venv/bin
# two processes; a file's tests stay together, as they share what is costly to make
PYTEST_FLAGS ?= -n 2 --dist loadfile
PHOTO ?= $(firstword $(wildcard demo/images/*.jpg))
TEXTS ?= pagoda, temple; person
STUFF ?= sky; tree, foliage; water, lake; hill, mountain

.PHONY: help venv test lint format demo clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

venv:  ## make .venv with the tested versions; instant when it is up to date
	@"$(PYTHON)" -c '$(SUITABLE)' 2>/dev/null || { \
	  echo "Python 3.10, 3.11 or 3.12 is needed; '$(PYTHON)' is not one that runs here:" >&2; \
	  "$(PYTHON)" -V >&2; \
	  echo "Name one: make PYTHON=/path/to/python3.11 test" >&2; exit 1; }
	@"$(PYTHON)" requirements/make_venv.py $(PIP_FLAGS)

test: lint  ## ruff and the whole test suite
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: venv  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: venv  ## let ruff rewrite the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: venv  ## segment a photograph with names of your choice (PHOTO=, TEXTS=, STUFF=)
	$(BIN)/python demo/image_demo.py $(PHOTO) --texts "$(TEXTS)" --stuff-texts "$(STUFF)" --out demo_output

clean:  ## remove .venv, caches and demo_output
	rm -rf .venv .pytest_cache .ruff_cache build demo_output odise_mm/.mim *.egg-info \
	  requirements/opencv_headless/build requirements/opencv_headless/*.egg-info
	find odise_mm tests tools projects demo requirements -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
