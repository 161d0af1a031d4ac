# `make demo` and `make test` set up everything they need in .venv and reuse it.

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

# Nothing needs a screen: Qt draws offscreen, VTK renders with EGL. (Not with
# vtkOSOpenGLRenderWindow: where the library OSMesa is absent, the first picture crashes.)
export QT_QPA_PLATFORM ?= offscreen
ifeq ($(shell uname -s)$(DISPLAY),Linux)
export VTK_DEFAULT_OPENGL_WINDOW ?= vtkEGLRenderWindow
endif

# Every process of the tests would compile DeepReg anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo demo-gui demo-clean test lint types test-library test-scene test-desktop \
  scenario screenshots docs benchmark compare acceptance clean
.DEFAULT_GOAL := help

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## Make .venv with everything for development

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo "DeepReg needs Python 3.10 or later; set PYTHON=/path/to/python3.11."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first and by itself, so that pip takes the pinned build and nothing newer.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  --editable '.[slicer,test,desktop,dev]'
	@rm -f $(VENV)/.ready-*
	@touch $@

demo: $(STAMP) ## Register a real pair, save a Slicer scene, make a picture
	@$(BIN)/python tools/demo.py

demo-gui: $(STAMP) ## Open the panel with the sample pair, without 3D Slicer (needs a screen)
	@env -u QT_QPA_PLATFORM $(BIN)/python Testing/Desktop/run.py --sample-pair

demo-clean: ## Remove what the demo wrote
	rm -rf build/demo

test: lint types test-library test-scene test-desktop ## Run everything that can run here

lint: $(STAMP) ## Check style and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet . || echo "(ruff format would change files; run it before a commit)"
	$(BIN)/codespell README.md CONTRIBUTING.md CHANGELOG.md docs DeepRegLib DeepReg tools Benchmarks

types: $(STAMP) ## Check annotations
	$(BIN)/mypy

test-library: $(STAMP) ## Run the tests of DeepRegLib
	$(BIN)/python -m pytest Testing/Library -n 2 --dist loadfile -q

test-scene: $(STAMP) ## Run the tests on the real MRML library
	$(BIN)/python -m pytest Testing/Scene -n 2 --dist loadfile -q

test-desktop: $(STAMP) ## Click through the real panel in the test application
	@# Every file of the panel in an application of its own, first what takes long for its size;
	@# those of the test application itself share one.
	{ ls Testing/Desktop/test_{scenario,panel_failures,panel_shipped}.py; \
	  ls -S Testing/Desktop/test_panel_*.py | grep -Ev 'failures|shipped'; \
	  ls Testing/Desktop/test_*.py | grep -Ev 'scenario|panel' | xargs; } | \
	  xargs -P 2 -L 1 $(BIN)/python -m pytest -q

scenario: $(STAMP) ## Play the scenario of a person at the panel; pictures go to build/scenario
	DEEPREG_SCREENSHOTS=build/scenario $(BIN)/python Testing/Desktop/run.py --testing \
	  --additional-module-path DeepReg --python-script Testing/Slicer/scenario.py

screenshots: $(STAMP) ## Take the pictures of the README anew
	rm -rf Resources/Screenshots/panel
	DEEPREG_SCENARIO_RUNS=1 DEEPREG_SCREENSHOTS=Resources/Screenshots/panel \
	  $(BIN)/python Testing/Desktop/run.py --testing --additional-module-path DeepReg \
	  --python-script Testing/Slicer/scenario.py
	for part in training population check; do \
	  DEEPREG_SCREENSHOTS=Resources/Screenshots/panel $(BIN)/python Testing/Desktop/run.py --testing \
	    --additional-module-path DeepReg --python-script Testing/Desktop/pictures_$$part.py || exit; \
	done

docs: $(STAMP) ## Write docs/algorithms.md anew
	$(BIN)/python tools/make_docs.py

benchmark: $(STAMP) ## Measure on the real volumes (an hour on two cores)
	$(BIN)/python Benchmarks/main_job.py

compare: $(STAMP) ## Compare with other registration programs (many hours on two cores)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -e '.[benchmark]'
	$(BIN)/python Benchmarks/compare.py
	$(BIN)/python Benchmarks/compare_table.py

acceptance: $(STAMP) ## Train and judge a learned system: make acceptance SYSTEM=vxm (hours on two cores)
	$(BIN)/python Benchmarks/accept.py $(SYSTEM); status=$$?; \
	  $(BIN)/python Benchmarks/accept_table.py; exit $$status

clean: ## Remove what the targets made
	rm -rf build .pytest_cache .ruff_cache .mypy_cache
