# netd: `make demo` shows it, `make test` tests it; `make help` lists the rest.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo run test check lint format types imports schema bench-trace bench-framed fuzz clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY)  ## make .venv with everything in it (netd, netctl, test tools)

$(READY): pyproject.toml packaging/constraints.txt packaging/dev-setup
	PYTHON="$(PYTHON)" packaging/dev-setup $(VENV)
	@touch $@

demo: $(READY)  ## five routers in network namespaces, a real client, its path live
	@$(BIN)/python -m tests.demo

run: $(READY)  ## start netd with config/dev.toml (socket and state under ./var)
	@mkdir -p var
	$(BIN)/netd --config config/dev.toml

test: $(READY) imports  ## layers and tests
	$(BIN)/pytest

check: $(READY) lint types test  ## lint, types, imports and tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## let ruff format the tree
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports

bench-trace: $(READY)  ## time to the full path, against traceroute, mtr, tcptraceroute, scamper
	$(BIN)/python -m tests.bench.trace

bench-framed: $(READY)  ## CPU per message, latency, fan-out and memory of framed TCP, against C, node, uvloop, Trio
	$(BIN)/python -m tests.bench.framed

fuzz: $(READY)  ## a minute of fuzzing for the parsers of frames, messages and handshakes (SECONDS=60)
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),60)

clean:  ## remove what the other targets made
	rm -rf $(VENV) var build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
