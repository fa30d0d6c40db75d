# The whole developer interface. `make` alone shows it.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.orun-setup
JOBS ?= auto

.DEFAULT_GOAL := help
.PHONY: help setup check test demo bench generate clean

help:
	@echo "make setup     a virtual environment with everything in it"
	@echo "make check     lint, types, layers, generated files, formatting"
	@echo "make test      check, then every test"
	@echo "make demo      an agent on real input, killed and restored"
	@echo "make bench     the figures, each beside its baseline"
	@echo "make generate  write manual, completions, schema and command table anew"
	@echo "make clean     remove what these made"

setup: $(STAMP)

# The pip that a fresh environment brings does not know --group.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/orun generate all --check --quiet
	$(BIN)/python -m ziglang fmt --check zig

test: check
	$(BIN)/orun engine build
	$(BIN)/python -m pytest -q -n $(JOBS)

demo: $(STAMP)
	$(BIN)/python -m orun.demo

bench: $(STAMP)
	$(BIN)/orun engine build
	$(BIN)/python -m tests.bench

generate: $(STAMP)
	$(BIN)/orun generate all

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .zig-cache
	find orun tests -name __pycache__ -type d -prune -exec rm -rf {} +
