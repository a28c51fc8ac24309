# `make` lists the targets. Everything is installed into $(VENV); nothing else on the machine is touched.

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
UV := $(or $(shell command -v uv 2>/dev/null),$(BIN)/uv)
INSTALL = $(UV) pip install --quiet --compile-bytecode --python $(BIN)/python
PROJECTS := pyproject.toml convert/pyproject.toml serve/pyproject.toml

# For `make test-newest`: any torch from 2.6 on.
TORCH ?= torch
NEWEST := $(VENV)-newest

COMPILE = $(UV) pip compile --quiet --python-version 3.11 --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links $(UPGRADE)

# For `make test`: processes that share the files of tests among them.
JOBS ?= 2

# For `make fuzz`: of each reader.
SECONDS ?= 300

.DEFAULT_GOAL := help
.PHONY: help setup demo convert test test-newest test-serve-install check bench bench-gpu count-gpu accept-gpu fuzz requirements release clean
.DELETE_ON_ERROR:

help:
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- the environment -------------------------------------------------------------------------------

$(VENV)/.made:
	@echo "making $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@test -x "$(UV)" || $(BIN)/python -m pip install --quiet uv
	@touch $@

$(VENV)/.run-ready: requirements/train.txt $(PROJECTS) | $(VENV)/.made
	@echo "installing the pinned packages of requirements/train.txt into $(VENV) (6 GB, a few minutes the first time)"
	@$(INSTALL) -r requirements/train.txt
	@$(INSTALL) --no-deps -e . -e ./convert -e ./serve
	@touch $@

$(VENV)/.test-ready: requirements/dev.txt $(VENV)/.run-ready
	@echo "installing the test tools of requirements/dev.txt into $(VENV)"
	@$(INSTALL) -r requirements/dev.txt
	@touch $@

setup: $(VENV)/.run-ready ## install what recording, training, serving and playing need, into .venv
	@$(BIN)/p2p doctor

requirements: | $(VENV)/.made ## pin requirements/*.txt anew from pyproject.toml (UPGRADE=--upgrade for newer versions)
	$(COMPILE) pyproject.toml --extra dev --output-file requirements/dev.txt
	$(COMPILE) pyproject.toml --extra all --constraint requirements/dev.txt --output-file requirements/train.txt
	$(PYTHON) -c 'import tomllib; print(*[d for d in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"] \
		if not d.startswith("torch")], sep="\n")' \
		| $(COMPILE) - --constraint requirements/dev.txt --output-file requirements/serve.txt
	printf '%s\n' av grpcio-tools hypothesis matplotlib pytest pytest-timeout \
		| $(COMPILE) - --constraint requirements/dev.txt --output-file requirements/test-serve.txt

# --- data and demo ----------------------------------------------------------------------------------

demo: $(VENV)/.run-ready ## everything once: record, convert, train, serve, play, report (no GPU needed)
	@$(BIN)/p2p demo $(DEMO)

convert: $(VENV)/.run-ready ## recordings to shards: make convert RAW=DIR OUT=DIR|s3://bucket/prefix [WORKERS=n]
	@test -n "$(RAW)" -a -n "$(OUT)" || \
		{ echo "say what and where to: make convert RAW=DIR OUT=DIR|s3://bucket/prefix [WORKERS=n]" >&2; exit 2; }
	@$(BIN)/p2p-convert "$(RAW)" "$(OUT)" $(if $(WORKERS),--workers $(WORKERS)) $(CONVERT)

# --- tests and measurements ------------------------------------------------------------------------

test: $(VENV)/.test-ready ## run all tests in JOBS processes (2); some only, in one: make test TESTS=tests/model
	@$(BIN)/python -m pytest $(if $(TESTS),$(TESTS),--numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder)

check: $(VENV)/.test-ready ## lint, format, strict types, import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest --quiet tests/test_import_rules.py

test-newest: ## tests of the model and the server on another torch: make test-newest [TORCH=torch==2.13.0]
	@test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	@$(NEWEST)/bin/python -m pip install --quiet "$(TORCH)"
	@$(NEWEST)/bin/python -m pip install --quiet -r requirements/serve.txt -r requirements/test-serve.txt
	@$(NEWEST)/bin/python -m pip install --quiet --no-deps -e . -e ./serve
	@$(NEWEST)/bin/python -m pytest -m "not pinned and not install" tests/model tests/serve tests/core

test-serve-install: $(VENV)/.test-ready ## pip install . ./serve in an empty environment brings the light core only
	@TORCH="$(TORCH)" $(BIN)/python -m pytest -m install tests/test_install.py

bench: $(VENV)/.test-ready ## all measurements of tests/benchmarks that this machine can make
	@for script in tests/benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

bench-gpu: ## training step and serving latency on a GPU; needs torch and this checkout (PYTHON=... chooses them)
	@for script in tests/benchmarks/bench_step.py tests/benchmarks/bench_serve.py; do \
		echo "== $$script"; PYTHONPATH=.:convert:serve $(PYTHON) $$script --device cuda || exit 1; done

count-gpu: $(VENV)/.test-ready ## what a step would cost on an H100, counted without one (hours on two cores; COUNT="--size 150M")
	@$(BIN)/python tests/benchmarks/count_gpu.py $(COUNT)

accept-gpu: ## all that only a GPU can confirm, stage by stage (PYTHON=... chooses the environment; ACCEPT=--small on a CPU)
	@PYTHONPATH=.:convert:serve $(PYTHON) tests/benchmarks/accept_gpu.py $(ACCEPT)

fuzz: $(VENV)/.test-ready ## every reader of what comes from outside, 5 minutes each; a live server (SECONDS=3600)
	@$(BIN)/python tests/benchmarks/fuzz_readers.py --seconds $(SECONDS)
	@$(BIN)/python tests/benchmarks/fuzz_protocol.py

release: $(VENV)/.test-ready ## build dist/, check what it says, and try the wheels in an empty environment
	@rm -rf dist
	@for project in . convert serve; do $(UV) build --quiet --out-dir dist $$project || exit 1; done
	@$(BIN)/twine check --strict dist/*.whl dist/*.tar.gz
	@WHEELS=dist $(BIN)/python -m pytest -m install tests/test_wheels.py

clean: ## remove environments, caches, runs and the demo's output
	rm -rf $(VENV) $(NEWEST) build dist demo runs wandb .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find p2p convert serve tests -name __pycache__ -prune -exec rm -rf {} +
