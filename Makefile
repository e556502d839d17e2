# Everything runs in .venv, from pinned and hashed packages; `make help` lists what there is.
# ARGS go to the command: make demo ARGS="--tests 3", make test ARGS="-k settle".

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := -m pip --disable-pip-version-check --quiet --quiet
INSTALL_LOCKED := install --require-hashes --requirement
INSTALL_SELF := install --no-deps --no-build-isolation
UV_VERSION := 0.13.8
COMPILE := uv pip compile --quiet --universal --generate-hashes --no-header --no-emit-package bandolero

# One environment, two stamps that touch it: never at the same time.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test lint format types imports audit coverage wheel-test bench bench-service bench-peers lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 16

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { \
	    echo "PYTHON == '$(PYTHON)', must be a command: install Python 3.11 or newer, or name one with 'make PYTHON=python3.12 …'." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$$($(PYTHON) --version 2>&1) at '$(PYTHON)', must be >= 3.11: name a newer one with 'make PYTHON=python3.12 …'." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# What the demo needs, and no more.
$(VENV)/.demo: requirements.lock pyproject.toml | $(VENV)/.made
	@echo "Installing the packages of $< into $(VENV): a minute or two the first time."
	@$(BIN)/python $(PIP) $(INSTALL_LOCKED) requirements.lock
	@$(BIN)/python $(PIP) $(INSTALL_SELF) --editable .
	@touch $@

# The development lock holds everything of the other one.
$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(VENV)/.made
	@echo "Installing the packages of $< into $(VENV): a minute or two the first time."
	@$(BIN)/python $(PIP) $(INSTALL_LOCKED) requirements-dev.lock
	@$(BIN)/python $(PIP) $(INSTALL_SELF) --editable .
	@touch $(VENV)/.demo $@

demo: $(VENV)/.demo  ## run the main job end to end on an embedded store
	$(BIN)/bandolero demo $(ARGS)

# A process a core, a file of tests on one of them: most tests wait for servers, the others compute. In their order: the longest
# files, in tests/faults, come first then.
SPREAD := --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.dev  ## run the tests
	$(BIN)/pytest $(SPREAD) $(ARGS)

lint: $(VENV)/.dev  ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev  ## format, and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev  ## check types
	$(BIN)/mypy

imports: $(VENV)/.dev  ## check who may import whom
	$(BIN)/lint-imports

audit: $(VENV)/.dev  ## look for known vulnerabilities in what users install
	$(BIN)/python .ci/audit.py requirements.lock

# Tests of the engine alone, with kernels as plain Python, so that their lines are seen; hence the longer time limit.
NOT_COVERING := tests/test_open_loop.py tests/test_tutorial.py
ENGINE_TESTS = $(filter-out $(NOT_COVERING),$(shell grep -L 'bandolero_service\|service_helpers' tests/test_*.py))

coverage: $(VENV)/.dev  ## run the engine's tests with kernels as plain Python, and measure
	$(BIN)/coverage erase
	NUMBA_DISABLE_JIT=1 $(BIN)/coverage run -m pytest -m "not slow" --timeout 300 $(SPREAD) $(ENGINE_TESTS) $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# What a wheel can lack: a module, a script, a template, an entry point. These tests would miss any of them.
WHEEL_TESTS := cli demo explain http imports lake public_names report_formats tutorial

# Its other packages are those of $(VENV); what stands there of ours is not seen, for a path file in a path is not read.
wheel-test: $(VENV)/.dev  ## run the walks against the built wheel, with no source beside them
	@set -eu; \
	home=$$(mktemp -d); trap 'rm -rf "$$home"' EXIT; \
	env -u PYTHONPATH $(BIN)/python -m hatchling build --target sdist --target wheel --directory "$$home/dist"; \
	$(PYTHON) -m venv "$$home/venv"; \
	"$$home/venv/bin/python" $(PIP) install --no-deps "$$home"/dist/*.whl; \
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$("$$home/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth"; \
	mkdir "$$home/run"; \
	cp -R tests pyproject.toml README.md "$$home/run"; \
	if [ -d data ]; then cp -R data "$$home/run"; fi; \
	cd "$$home/run"; \
	env -u PYTHONPATH "$$home/venv/bin/python" -P -m pytest -p no:cacheprovider -m "not slow" $(WHEEL_TESTS:%=tests/test_%.py) $(ARGS)

# These start the whole system, and want the machine for themselves for some minutes each.
SERVICE_BENCHES := $(patsubst %,benchmarks/%.py,load memory pauses faults)

bench: SCRIPTS = $(filter-out $(SERVICE_BENCHES),$(sort $(wildcard benchmarks/[!_]*.py)))
bench-service: SCRIPTS = $(SERVICE_BENCHES)
bench bench-service: $(VENV)/.dev
	@set -eu; for script in $(SCRIPTS); do \
	    echo "== $$script"; $(BIN)/python "$$script" $(ARGS); done

bench:  ## run the benchmarks: each prints machine, versions and medians
bench-service:  ## the same for the whole system: load, memory, pauses, kills

bench-peers: $(VENV)/.dev  ## time ours against nine other packages (installs them, gigabytes, into benchmarks/.peers)
	$(BIN)/python -m benchmarks.peers $(ARGS)

lock:  ## pin the newest packages that pyproject.toml allows (ARGS=--upgrade), else only what it newly asks for
	@set -eu; \
	home=$$(mktemp -d); trap 'rm -rf "$$home"' EXIT; \
	$(PYTHON) -m venv "$$home"; \
	"$$home/bin/python" $(PIP) install uv==$(UV_VERSION); \
	"$$home/bin"/$(COMPILE) $(ARGS) pyproject.toml --extra service --group build --output-file requirements.lock; \
	"$$home/bin"/$(COMPILE) $(ARGS) --constraint requirements.lock pyproject.toml --extra service --extra spark --group dev --output-file requirements-dev.lock; \
	! grep -n '://' requirements.lock requirements-dev.lock

clean:  ## remove what make and the tools made (not .bandolero, which holds data)
	rm -rf $(VENV) dist out htmlcov .coverage .coverage.* .benchmarks .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find benchmarks engine service tests -name __pycache__ -type d -prune -exec rm -rf {} +
