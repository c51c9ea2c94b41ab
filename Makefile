# make demo   the whole chain on the embedded model, in an environment of its own
# make test   every test; make check: format, lint, types, tests, wheel, demo
# make test-oldest, test-newest   the tests on the oldest and newest versions that pyproject.toml
#             allows, each in an environment of its own
# make audit  known weaknesses of the pinned versions; asks a service on the network
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SEED ?= 0

.PHONY: demo test test-oldest test-newest check lint wheel bench audit clean help

help:
	@sed -n 's/^# //p' Makefile

demo: $(READY)
	$(BIN)/alignkit demo --seed $(SEED)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -q

# Those of training and stages, which feel a dependency first: make test-oldest TESTS=tests for all.
TESTS ?= tests/training tests/stages tests/model tests/test_dependencies.py

test-oldest: .ci/oldest.txt
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install -q -c .ci/oldest.txt -e '.[test]'
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest -n 2 --dist loadfile -q $(TESTS)

test-newest:
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install -q -U --upgrade-strategy eager -e '.[test]'
	OMP_NUM_THREADS=1 $(VENV)-newest/bin/python -m pytest -n 2 --dist loadfile -q $(TESTS)

.ci/oldest.txt: pyproject.toml $(READY)
	$(BIN)/python .ci/oldest.py >$@

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

wheel: $(READY)
	rm -rf dist
	$(BIN)/python -m pip wheel -q --no-deps -w dist .

check: lint test wheel demo

bench: $(READY)
	$(BIN)/python -m benchmarks.short

audit:
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install -q pip-audit
	$(VENV)-audit/bin/pip-audit --no-deps -r .ci/constraints.txt

$(READY): pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "alignkit needs Python 3.11 or newer: make demo PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV) || \
	  { echo "venv is missing; on Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q "$$(grep '^torch==' .ci/constraints.txt)"
	$(BIN)/python -m pip install -q -c .ci/constraints.txt -e '.[test,check]'
	@touch $(READY)

clean:
	rm -rf $(VENV) $(VENV)-audit $(VENV)-oldest $(VENV)-newest dist runs
