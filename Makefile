# Shiftcore. `make demo` and `make test` set up everything they need, on a fresh machine too.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL: # a recipe is one script; @ on its first line silences all of it
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3# the interpreter that makes .venv; 3.11 or newer
JOBS ?= 2# test processes
ARGS ?=# more arguments for pytest or the campaign, e.g. ARGS='-k vqk'

# What make runs keeps compiled modules; else every process would compile torch again.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
READY := $(VENV)/.packages-ready

.PHONY: help
help: ## list the targets
	@sed -nE 's/^([a-z]+):[^#]*## (.*)$$/  make \1\t\2/p' Makefile | expand -t 18

.PHONY: demo
demo: $(READY) ## quantize, simulate and compare the digits network; results in out/demo
	$(BIN)/shiftcore demo -o out/demo

.PHONY: test
test: TK := yes# for the tests of projects, whose scripts are Tcl
test: style ## the gate: lint, types, all tests
	@$(MAKE) --no-print-directory -j2 types pytest # pyright would keep one core for a minute

.PHONY: pytest
pytest: $(READY)
	$(BIN)/python -P -m pytest -n $(JOBS) $(ARGS)

.PHONY: lint
lint: style types ## ruff and pyright, changing nothing

.PHONY: style
style: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(READY)
	$(BIN)/pyright -p pyproject.toml

.PHONY: format
format: $(READY) ## let ruff format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: campaign
campaign: $(READY) ## the long run over large and random configurations; resumable
	$(BIN)/python -P -m shiftcore.sim.campaign $(ARGS)

.PHONY: hostile
hostile: $(READY) ## 10,000 hostile programs on the simulated accelerator; resumable
	$(BIN)/python -P -m shiftcore.sim.hostile $(ARGS)

.PHONY: mutants
mutants: $(READY) ## plant faults in the gateware; each must be caught by its test
	$(BIN)/python -P -m shiftcore.sim.mutants $(ARGS)

.PHONY: netlists
netlists: $(READY) ## the tests of the RTL's parts, and a whole accelerator, on synthesized netlists
	$(BIN)/python -P benchmarks/netlists.py $(ARGS)

.PHONY: proofs
proofs: $(READY) ## prove the forms of the processing elements, of all widths, equal to * and +
	$(BIN)/python -P benchmarks/proofs.py $(ARGS)

.PHONY: setup
setup: $(READY) ## only install: system packages, .venv, pinned packages

.PHONY: clean
clean: ## remove out/ and Python's caches; .venv stays
	rm -rf out
	find . -name .venv -prune -o -type d -name __pycache__ -exec rm -rf {} +

# System packages: checked on every run, because that costs nothing. Debian names them as their commands.
TOOLS := g++ make perl iverilog ccache

.PHONY: system
system:
	@missing=""
	for tool in $(TOOLS); do command -v "$$tool" >/dev/null || missing="$$missing $$tool"; done
	if [ ! -e $(VENV) ] && [ $(PYTHON) = python3 ] && ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
	    missing="$$missing python3-venv"
	fi
	if [ "$(TK)" = yes ] && [ $(PYTHON) = python3 ] && ! python3 -c 'import tkinter' 2>/dev/null; then
	    missing="$$missing python3-tk"
	fi
	[ -n "$$missing" ] || exit 0
	root=""
	if [ "$$(id -u)" != 0 ]; then root="sudo -n"; fi
	if command -v apt-get >/dev/null && $$root true 2>/dev/null; then
	    echo "Installing with apt-get:$$missing"
	    $$root apt-get update -qq </dev/null &&
	        $$root env DEBIAN_FRONTEND=noninteractive \
	            apt-get install -y -qq --no-install-recommends $$missing </dev/null &&
	        exit 0
	fi
	echo "shiftcore needs these system packages, please install them:$$missing" >&2
	exit 1

$(VENV)/.created: | system
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
	    found=$$($(PYTHON) -V 2>/dev/null || echo missing)
	    echo "shiftcore needs Python 3.11 or newer; $(PYTHON) is: $$found." \
	        "Name another one: make PYTHON=python3.12" >&2
	    exit 1
	fi
	$(PYTHON) -m venv $(VENV)
	touch $@

# The editable install brings the dependencies and the `shiftcore` command. Imports go through the link
# instead: .venv/src/shiftcore is the repository root, and type checkers resolve `shiftcore.*` by it too.
# Modules are compiled when they are first imported: to compile all takes pip half of the whole time.
$(READY): $(VENV)/.created pyproject.toml constraints.txt | system
	@echo "Installing the packages of constraints.txt into $(VENV) (minutes, the first time)"
	$(PIP) install --quiet --no-compile -c constraints.txt setuptools
	$(PIP) install --quiet --no-compile -c constraints.txt --no-build-isolation --editable '.[all]'
	site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
	mkdir -p $(VENV)/src
	ln -sfn ../.. $(VENV)/src/shiftcore
	echo ../../../src > "$$site/shiftcore.pth"
	touch $@
