# netd: `make demo` shows it, `make test` tests it; `make help` lists the rest.

PYTHON ?= python3
SUITE  ?= bookworm
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo run test system-test check lint format types imports bench-trace bench-framed bench-broker fuzz clean
.PHONY: lock deb reproduce docs release

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
	$(BIN)/pytest --ignore=tests/system

system-test: $(READY)  ## the package of `make deb` on a Debian that boots in a container (root; SUITE=bookworm)
	SUITE=$(SUITE) $(BIN)/pytest tests/system

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

bench-broker: $(READY)  ## CPU per delivery, latency, accepts and memory of the broker, against C, nats, mosquitto, node, bun
	$(BIN)/python -m tests.bench.broker

fuzz: $(READY)  ## a minute of fuzzing for whatever parses what others sent (SECONDS=60)
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),60)

lock: $(READY)  ## write packaging/requirements*.txt again: versions and hashes of what the package brings
	$(BIN)/python packaging/lock

deb:  ## the Debian package, in build/ (SUITE=trixie: in a root file system that is thrown away, as root)
	packaging/build-deb $(if $(filter-out file,$(origin SUITE)),--suite $(SUITE))

reproduce:  ## make deb, twice over, and compare the bytes
	packaging/reproduce $(if $(filter-out file,$(origin SUITE)),--suite $(SUITE))

release: $(READY)  ## build a release into build/release (VERSION=x.y.z; DRY_RUN=1 only says every step)
	$(BIN)/python packaging/release "$(VERSION)" $(if $(filter-out 0,$(DRY_RUN)),--dry-run)

docs: $(READY)  ## the documentation as HTML, in build/docs: manual, Python API, REST API
	rm -rf build/docs
	$(BIN)/python packaging/generate/docs.py build/docs

clean:  ## remove what the other targets made
	rm -rf $(VENV) var build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
