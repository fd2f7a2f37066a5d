# Everything runs in .venv, which the first target that needs it makes. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?=
SHELL := /bin/bash

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint types serve bench bench-latency bench-client bench-engines soak audit docs clean

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
	@$(BIN)/mypy --strict client/xray_client tests/client/customer.py && $(BIN)/mypy build/xray_build finetune benchmarks

docs: $(VENV)/installed ## the documentation as a site in site/, every link checked
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo site/index.html

serve: $(VENV)/installed ## serve model_repository/ with the local Triton until Ctrl-C; the reference model if it is empty
	@$(BIN)/python -m finetune.export reference --unless-published
	@$(BIN)/xray-server

bench: $(VENV)/installed ## throughput and latency under load, by perf_analyzer (DATA=folder of radiographs); 15 minutes
	@$(BIN)/python -m finetune.export reference --unless-published
	@$(if $(DATA),,$(BIN)/python -m finetune.phantom --out runs/phantoms/bench --count 40)
	@$(BIN)/python -m benchmarks.load --images "$(or $(DATA),runs/phantoms/bench)" $(ARGS)

bench-latency: $(VENV)/installed ## latency of one classified image and the engine's share of it, against the local Triton
	@$(BIN)/python -m finetune.export reference --unless-published
	@$(BIN)/python -m benchmarks.latency $(ARGS)

bench-client: $(VENV)/installed ## what the client costs, beside what it is compared with (ARGS="--images DIR")
	@$(BIN)/python -m finetune.export reference --unless-published
	@$(BIN)/python -m benchmarks.client $(ARGS)

bench-engines: $(VENV)/installed ## all engines built, compared and timed (DATA=folder of radiographs, VALIDATION=labelled ones)
	@$(BIN)/python -m benchmarks.engines --images "$(DATA)" $(if $(VALIDATION),--validation "$(VALIDATION)") $(ARGS)

soak: $(VENV)/installed ## ten minutes of mixed load, publications and killed servers on the local Triton (ARGS="--minutes 60")
	@$(BIN)/python -m benchmarks.soak $(ARGS)

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
