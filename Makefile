# Everything runs in .venv, which the first target that needs it makes. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?=
SHELL := /bin/bash

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint types serve bench audit docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/installed ## the whole way: data, training, export, Triton, classification (DATA=folder for your own)
	@$(BIN)/python -m finetune.demo $(if $(DATA),--data "$(DATA)")

# A process that dies ends the run: pytest-xdist 3.8 can wait without end for one that takes its place.
test: $(VENV)/installed ## all tests, the slow ones too, two files at a time
	@$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 $(ARGS)

test-fast: $(VENV)/installed ## the tests that take seconds
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

lint: $(VENV)/installed ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory types

types: $(VENV)/installed ## mypy alone
	@$(BIN)/mypy

docs: $(VENV)/installed ## the documentation as a site in site/, every link checked
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo site/index.html

serve: $(VENV)/installed ## serve model_repository/ with the local Triton until Ctrl-C; the reference model if it is empty
	@$(BIN)/python -m finetune.export reference --unless-published
	@$(BIN)/xray-server

# Parts that measure the published model, and parts that draw phantoms where no radiographs are named.
PUBLISHED_PARTS := load latency client
DRAWING_PARTS := load client
PARTS := $(sort $(PUBLISHED_PARTS) engines training metrics soak)
PART ?= load
RADIOGRAPHS = $(or $(DATA),$(if $(filter $(DRAWING_PARTS),$(PART)),runs/phantoms/bench))

bench: $(VENV)/installed ## measure PART=load (default), latency, client, engines, training, metrics or soak (DATA=folder, VALIDATION=, ARGS=)
	@$(if $(filter $(PARTS),$(PART)),:,echo 'PART=$(PART) is none of $(PARTS)' >&2; exit 2)
	@$(if $(filter $(PUBLISHED_PARTS),$(PART)),$(BIN)/python -m finetune.export reference --unless-published)
	@$(if $(DATA),,$(if $(RADIOGRAPHS),$(BIN)/python -m finetune.phantom --out $(RADIOGRAPHS) --count 40))
	@$(BIN)/python -m benchmarks.$(PART) $(if $(RADIOGRAPHS),$(if $(filter training,$(PART)),--data,--images) "$(RADIOGRAPHS)") $(if $(VALIDATION),--validation "$(VALIDATION)") $(ARGS)

audit: $(VENV)/installed ## known vulnerabilities of the versions in constraints.txt (needs network)
	@PATH="$(BIN):$$PATH" .ci/audit

clean: ## remove the virtual environment and caches; runs/ and published versions stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

# Made anew only when what is to be installed changes.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' \
		|| { echo 'Python 3.10, 3.11 or 3.12 is needed; name one: make PYTHON=python3.11 ...' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo 'venv is missing; on Debian or Ubuntu: apt install python3-venv' >&2; exit 1; }
	@echo 'installing into $(VENV) (once, some minutes)'
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -m benchmarks.perf_analyzer >/dev/null || echo 'make bench will fetch perf_analyzer when it can; its tests skip until then'
	@touch $@
