# make setup    a virtual environment in .venv with the podracer command in it, and one in the cache with Reverb's server
# make pong     trains Muesli on Atari Pong, then evaluates; make demo: Catch, solved within two minutes
# make check    before every commit, two minutes: lint, format, types (make lint) and the quick tests (make quick)
# make test     the tests, a quarter of an hour on two cores; make test-slow: the long ones too, and what each took
# make docs     the site of the documentation, in site/
# make report   runs benchmarks for three quarters of an hour and writes docs/report; ARGS="--list" says what there is
#
# ARGS="..." goes to the command: make pong ARGS="--steps 1e6 --seed 1"

PYTHON ?= $(shell command -v python3.11 || command -v python3)
EXTRAS ?= dev,docs,pgx,ray,vizdoom,wandb
BIN := .venv/bin
STAMP := .venv/.complete
# The slim form: a minute and 170 MB, where the official one takes two and 1.3 GB. The installation itself writes this file.
CACHE := $(or $(PODRACER_CACHE_DIR),$(HOME)/.cache/podracer)
REVERB := $(CACHE)/reverb/slim/.complete
# With which podracer plan compiles for TPUs; see docs/plan.md.
LIBTPU := $(CACHE)/compilers/tpu/.complete

.PHONY: help setup pong demo check lint quick test test-slow docs report
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \{0,1\}//p' Makefile

setup: $(STAMP) $(REVERB) $(LIBTPU)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "podracer: there is no python3: install Python 3.11 or newer (apt install python3 python3-venv)"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "podracer: $(PYTHON) is older than 3.11: install a newer one, or say make setup PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "podracer: $(PYTHON) has no venv module: apt install python3-venv"; exit 1; }
	@echo "installing podracer[$(EXTRAS)] into .venv: some minutes, about 2 GB"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@
	@echo "ready: $(BIN)/podracer --help"

# Without it all else works; the tests that need it are skipped and say so.
$(REVERB): | $(STAMP)
	@$(BIN)/podracer reverb install --slim || \
	  echo "podracer: no Reverb server (see above): tests that need it are skipped; podracer reverb install tries again"

$(LIBTPU): | $(STAMP)
	@PIP_CONSTRAINT=constraints.txt $(BIN)/podracer plan install tpu || \
	  echo "podracer: no libtpu (see above): podracer plan compiles for no TPU; podracer plan install tries again"

pong: $(STAMP)
	$(BIN)/podracer launch anakin --agent muesli --env atari/pong $(ARGS)

demo: $(STAMP)
	$(BIN)/podracer launch anakin --agent muesli --env catch $(ARGS)

check: lint quick

# A test that hangs, or has grown too long to be quick, fails here.
quick: $(STAMP)
	$(PYTEST) -m "quick and not slow" --timeout 30 $(ARGS)

test: setup
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: setup
	PODRACER_TESTS_OPTIMIZED=1 $(PYTEST) --durations=0 --durations-min=10 $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Any warning ends it: a link that leads nowhere, a module that no page has.
docs: $(STAMP)
	$(BIN)/python docs/tools/assemble.py build/docs
	$(BIN)/zensical build --strict --clean

report: $(STAMP)
	$(BIN)/python benchmarks/report.py $(ARGS)
