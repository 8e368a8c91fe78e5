# On a fresh machine: `make demo` and `make test` do all the set-up. Needs Python 3.10 or newer, with venv, and make.

PYTHON ?= python3
OUT ?= report
PYTEST_ARGS ?=
WORKERS ?= 2

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-oldest lint format docs bench clean

help:
	@echo 'make demo         score and extend the bundled model, report in OUT ($(OUT))'
	@echo 'make test         ruff, mypy, every test and notebook, with the versions of constraints.txt'
	@echo 'make test-oldest  tests that touch the host, with the versions of constraints-oldest.txt'
	@echo 'make lint         ruff and mypy only'
	@echo 'make format       let ruff fix and format'
	@echo 'make docs         build the documentation strictly into site/'
	@echo 'make bench        speed and memory against baselines, into benchmarks/results; some 40 minutes'
	@echo 'make clean        remove environments, caches and the report'
	@echo 'Settings: PYTHON=$(PYTHON) OUT=$(OUT) WORKERS=$(WORKERS) PYTEST_ARGS=$(PYTEST_ARGS)'

demo: .venv/.installed
	.venv/bin/positional-heads score bundled --text bundled --out $(OUT) --sequences 12 --null-repeats 10 --overwrite
	.venv/bin/positional-heads extrapolate bundled --methods none,yarn --factors 2 --depths 2 --examples 1 \
		--sequences 1 --out $(OUT)/extrapolation --overwrite
	.venv/bin/positional-heads report $(OUT) --overwrite

test: lint
	.venv/bin/python -m pytest $(IN_PARALLEL) $(PYTEST_ARGS)

# A file's tests share what they set up, so that they stay together.
IN_PARALLEL = -n $(WORKERS) --dist loadfile

# The rooms that touch TransformerLens, less what is run in whole by `make test` and is the same in both.
HOST_TESTS = bridge scoring studies laws
SAME_IN_BOTH = bridge/rope_scaling/test_names scoring/test_shards studies/tasks/test_harness studies/tasks/test_longbench \
	studies/tasks/test_tasks laws/test_bad_values laws/test_docs laws/test_notebooks laws/test_reprs \
	laws/test_resolution laws/test_site

test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/python -m pytest $(IN_PARALLEL) $(HOST_TESTS:%=tests/%) -m 'not slow' \
		$(SAME_IN_BOTH:%=--ignore=tests/%.py) $(PYTEST_ARGS)

# Whatever a test loads, it finds in this repository.
test test-oldest: export HF_HUB_OFFLINE = 1
# Tiny models gain nothing from more threads, and where there are more threads than cores they wait for each other.
test test-oldest: export OMP_NUM_THREADS = 1

lint: .venv/.installed-dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

format: .venv/.installed-dev
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

docs: .venv/.installed-dev
	.venv/bin/mkdocs build --strict

bench: .venv/.installed-dev
	.venv/bin/python -m benchmarks.kernel
	.venv/bin/python -m benchmarks.scoring
	.venv/bin/python -m benchmarks.workers

clean:
	rm -rf .venv .venv-oldest .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist report site
	find positional_heads tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Each environment is filled once, and again when its pins or pyproject.toml change: the stamp is what it was filled for.
.venv/.installed: pyproject.toml constraints.txt
	$(call filled_environment,.venv,constraints.txt,.)

.venv/.installed-dev: pyproject.toml constraints.txt
	$(call filled_environment,.venv,constraints.txt,.[dev])
	touch .venv/.installed

.venv-oldest/.installed: pyproject.toml constraints-oldest.txt
	$(call filled_environment,.venv-oldest,constraints-oldest.txt,.[test])

# $(1) environment, $(2) pins, $(3) what to install. Without a working pip, an interrupted set-up starts over.
define filled_environment
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("$(PYTHON) is Python %d.%d, positional_heads needs 3.10 or newer: make PYTHON=/path/to/newer/python" % sys.version_info[:2])'
	$(1)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(1)
	$(1)/bin/python -m pip install --disable-pip-version-check -c $(2) -e '$(3)'
	touch $@
endef
