# Every task, from a fresh clone: the first one creates .venv and installs into it with the pins of
# constraints.txt. `make help` lists them.
#
#   PYTHON     interpreter that .venv is made with       make test PYTHON=python3.12
#   PIP_ARGS   added to pip install                      make demo PIP_ARGS="--index-url ..."
#   ARGS       added to the demo's, app's or tests' command make demo ARGS="--preset smoke"
#   WORKERS    test processes, 0 for none beside pytest  make test WORKERS=0

PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
WORKERS ?= 2

VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# A worker costs about 5 s of processor time to start (it imports torch), so two pay off from some
# 20 s of tests on. One thread each: more would only wait for each other.
PYTEST = OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS)

.DEFAULT_GOAL := help
.PHONY: help install demo app test test-slow lint format clean

help:  ## list the tasks
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

demo: $(STAMP)  ## distil the embedded CIFAR-10 teacher into a one-step GET (ARGS="--help" for options)
	$(RUN) examples/distill_cifar.py $(ARGS)

app: $(VENV)/.installed-demo  ## open a page to play with a student (ARGS="--help" for options)
	$(RUN) examples/app.py $(ARGS)

test: $(STAMP)  ## run the tests, with coverage (ARGS="tests/solvers --no-cov" for some, without)
	$(PYTEST) --cov --cov-report=term $(ARGS)

test-slow: $(STAMP)  ## run the tests that take minutes
	$(PYTEST) -m slow --timeout 1800 $(ARGS)

lint: $(STAMP)  ## check style and types, change nothing
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(STAMP)  ## format the code and fix what can be fixed safely
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

install: $(STAMP)  ## create .venv and install deqgen into it, editable, with the dev extra

clean:  ## remove .venv, caches and build outputs (never runs/)
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
	find deqgen deqgen_solvers tests examples -name __pycache__ -prune -exec rm -rf {} +

# Installed again only when what is to be installed has changed.
$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" > /dev/null || { \
	    echo "deqgen: there is no '$(PYTHON)' here; name a Python >= 3.10 with PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "deqgen needs Python 3.10 or newer, and $(PYTHON) is $$("$(PYTHON)" -V 2>&1);" \
	        "name a newer one with PYTHON=..., as in: make $(or $(MAKECMDGOALS),test) PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2> /dev/null || { \
	    echo "deqgen: $(PYTHON) cannot make a virtual environment; install its venv module" \
	        "(Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(RUN) -m pip install 'pip>=21.3'
	$(RUN) -m pip install -c constraints.txt -e '.[dev]' $(PIP_ARGS)
	@touch $(STAMP)

# A further extra, when a task first needs it: .installed-demo is the extra demo.
$(VENV)/.installed-%: $(STAMP)
	$(RUN) -m pip install -c constraints.txt -e '.[$*]' $(PIP_ARGS)
	@touch $@
