# make test and make demo need only Python 3.10 to 3.12 and git.
# make PYTHON=python3.12 test            choose the Python (default: the first suitable one)
# make PIP_FLAGS="..." test              additional arguments for pip, such as another package index
# make PYTEST_FLAGS="-k vocab" test      arguments for pytest instead of the ones below

SUITABLE := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
CANDIDATES := python3 python3.12 python3.11 python3.10 python
ifndef PYTHON
PYTHON := $(shell for p in $(CANDIDATES); do $$p -c '$(SUITABLE)' 2>/dev/null && echo $$p && break; done)
endif
BIN := .venv/bin
# two processes; the tests of a file stay together, because they share expensive fixtures, and the
# files keep the order of tests/conftest.py, which puts the slow ones first
PYTEST_FLAGS ?= -n 2 --dist loadfile --no-loadscope-reorder
TOY := projects/toy_world
CONFIG := odise_toy_label
WEIGHTS := $(TOY)/weights/odise_label.safetensors
TEXTS ?= yellow triangle, golden triangle; red moon; white box; black triangle
STUFF ?= sky; brick wall, bricks; water, sea
OUT := demo_output
# when testing, show only the tables
QUIET := --cfg-options log_level=WARNING

.PHONY: help venv test test-formats test-export test-web lint format coverage docs demo toy-ablation clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

venv:  ## create .venv with the tested versions (instant if it is up to date)
	@"$(PYTHON)" -c '$(SUITABLE)' 2>/dev/null || { \
	  echo "Python 3.10, 3.11 or 3.12 is required, but '$(PYTHON)' is not one of them or cannot run:" >&2; \
	  "$(PYTHON)" -V >&2; \
	  echo "Choose one with: make PYTHON=/path/to/python3.11 test" >&2; exit 1; }
	@"$(PYTHON)" requirements/make_venv.py $(PIP_FLAGS)

test: lint  ## run ruff, mypy and the whole test suite
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: venv  ## check rules and format (ruff) and the types of the public API (mypy)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

test-formats: venv  ## read converted results with other programs (downloads 2 GB into .formats on the first call)
	@grep -v '^#' requirements/formats.txt | while read -r packages; do \
	  folder=.formats/$${packages%%==*}; test -e $$folder/installed && continue; \
	  $(BIN)/python -m venv $$folder && $$folder/bin/python -m pip install $(PIP_FLAGS) $$packages && \
	  touch $$folder/installed || exit 1; done
	$(BIN)/python -m pytest tests/test_io

test-export: venv  ## export to ONNX and compare with PyTorch (installs the extra `export` into .venv)
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -r requirements/export.txt
	$(BIN)/python -m pytest tests/test_export

test-web: venv  ## try the web page in headless Chromium, which must be installed (creates .web beside .venv)
	@test -e .web/installed || { $(BIN)/python -m venv --without-pip .web && \
	  $(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > $$(.web/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth && \
	  .web/bin/python -m pip install $(PIP_FLAGS) -r requirements/web.txt playwright && touch .web/installed; }
	.web/bin/python -m pytest tests/test_serving/test_browser.py

format: venv  ## format and fix the files with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

coverage: venv  ## run the tests and measure their coverage (details in htmlcov/index.html)
	$(BIN)/python -m pytest $(PYTEST_FLAGS) --cov --cov-report=term --cov-report=html

docs: export NO_MKDOCS_2_WARNING := 1
docs: venv  ## update the tables of configs, and build the documentation in site/
	$(BIN)/python docs/tables.py
	$(BIN)/python -m mkdocs build --strict

ifdef PHOTO
demo: venv  ## run the demo, or segment your own image (PHOTO=, TEXTS=, STUFF=, CONFIG=, WEIGHTS=)
	$(BIN)/python demo/image_demo.py $(PHOTO) --texts "$(TEXTS)" --stuff-texts "$(STUFF)" \
	  --config $(CONFIG) --weights $(WEIGHTS) --legend --out $(OUT)
else
demo: venv
	@printf '\n1 of 4: segmenting a scene in which the model finds all given class names\n'
	$(BIN)/python demo/image_demo.py demo/images/toy_scene.jpg --texts "$(TEXTS)" --stuff-texts "$(STUFF)" \
	  --config $(CONFIG) --weights $(WEIGHTS) --legend --out $(OUT)
	@printf '\n2 of 4: teaching a word that the model cannot read by two examples, and finding it in another scene\n'
	@rm -f $(OUT)/drops.safetensors  # of earlier weights
	$(BIN)/python -m odise_mm teach --annotations demo/teach/drops.json --images demo/teach \
	  --config $(CONFIG) --weights $(WEIGHTS) --out $(OUT)/drops.safetensors
	$(BIN)/python demo/image_demo.py demo/teach/drop_3.jpg --memory $(OUT)/drops.safetensors \
	  --texts "blue drop; black ring" --stuff-texts "sky; water; sand" \
	  --config $(CONFIG) --weights $(WEIGHTS) --legend --out $(OUT)/taught
	@printf '\n3 of 4: drawing 50 scenes, and testing the model on them with all 88 names of the toy world\n'
	$(BIN)/python $(TOY)/generate.py $(OUT)/data/toy_world --splits val --number 50
	$(BIN)/python tools/test.py $(CONFIG) $(WEIGHTS) --data-root $(OUT)/data \
	  --work-dir $(OUT)/log --out $(OUT)/results.json $(QUIET)
	@printf '\n4 of 4: drawing a sheet of results\n'
	$(BIN)/python $(TOY)/sheet.py $(WEIGHTS) --config $(CONFIG) --data-root $(OUT)/data/toy_world \
	  --out $(OUT)/sheet.png
	@printf '\nSee $(OUT)/vis/toy_scene.jpg, $(OUT)/taught/vis/drop_3.jpg, $(OUT)/results.json and $(OUT)/sheet.png\n'
	@printf 'A checkerboard in the sheet, and darker pixels in the scene, mean: nothing found\n'
endif

toy-ablation: venv  ## run the paper's ablations in the toy world (many hours; can be interrupted and continued)
	$(BIN)/python $(TOY)/generate.py data/toy_world
	$(BIN)/python tools/run_study.py configs/toy/ablation; failed=$$?; \
	$(BIN)/python tools/analysis_tools/ablation_table.py work_dirs/toy/ablation --out work_dirs/toy_ablation \
	  && exit $$failed

clean:  ## remove .venv, caches, site and demo_output
	rm -rf .venv .formats .web .pytest_cache .ruff_cache .mypy_cache .coverage* htmlcov build site demo_output odise_mm/.mim *.egg-info \
	  requirements/opencv_headless/build requirements/opencv_headless/*.egg-info
	find odise_mm tests tools projects demo requirements -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
