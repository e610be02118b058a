# Needs Python >= 3.11, git and make; everything else goes into .venv. `make help` lists the targets.
# torch from PyPI on Linux is a CUDA build of several GB. For the small CPU build, give pip its index:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# `make fuzz CASES=100000`
CASES ?= 3000

# `make bench NAMES="cic fft"`: some of the benchmarks; default: all but the long ones
NAMES ?=

# `make train MODEL=no-mass BOXES="a.h5 b.h5" VALIDATION=c.h5`
MODEL      ?= default
BOXES      ?=
VALIDATION ?=

RUN_EXTRAS := train,plot,shell
DEV_EXTRAS := train,tune,plot,io,share,hpc,shell,docs,notebooks,dev
NIGHTLY_EXTRAS := train,tune,plot,explore,io,share,hpc,shell,test
# What `make docs` builds
DOCS ?= html

BENCH_EXTRAS := plot,hpc,bench

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo docs notebooks test test-min test-upstream lint typecheck format hooks train bench slurm fuzz clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/dev.stamp ## .venv with everything for development (other targets build it when they have to)

demo: $(VENV)/run.stamp ## reconstruct the sample box and score it: demo-output/report/report.html
	$(BIN)/cosmofields demo --out demo-output

# Two workers, because importing torch and compiling kernels dominates. Each gets one OpenMP thread
# (torch, BLAS), or two workers would run four on two cores; our kernels take their threads from the
# caller and stay short. A file stays on one worker: its fixtures are built once.
test: export OMP_NUM_THREADS = 1
test: PYTEST_ARGS ?= -n 2 --dist loadfile
test: $(VENV)/dev.stamp ## ruff check, then pytest (PYTEST_ARGS replaces "-n 2 --dist loadfile")
	$(BIN)/ruff check .
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# What works with the oldest and the newest of what we stand on; each in an environment of its own.
NIGHTLY_ARGS ?= -m "not slow" -n 2 --dist loadfile
# A version instead of a floor: EXCEPT=torch==2.13.0
EXCEPT ?=
# Sources too: UPSTREAM="git+https://github.com/pydata/xarray ...". New releases of zarr need Python 3.12.
UPSTREAM ?= numpy xarray dask distributed zarr

test-min test-upstream: export OMP_NUM_THREADS = 1
test-min: ## nightly: the quick tests with each dependency at its floor, in .venv-min (EXCEPT=torch==2.13.0)
	@$(MAKE) --no-print-directory VENV=.venv-min .venv-min/bin/python
	.venv-min/bin/python tools/floors.py $(EXCEPT) > .venv-min/floors.txt
	.venv-min/bin/python -m pip install -q -c .venv-min/floors.txt -e ".[$(NIGHTLY_EXTRAS)]"
	.venv-min/bin/python -m pytest $(NIGHTLY_ARGS)

test-upstream: ## nightly: the same with the newest, also pre-releases, of UPSTREAM (PYTHON=python3.13)
	@$(MAKE) --no-print-directory VENV=.venv-upstream .venv-upstream/bin/python
	.venv-upstream/bin/python -m pip install -q -e ".[$(NIGHTLY_EXTRAS)]"
	.venv-upstream/bin/python -m pip install -q --pre --upgrade $(UPSTREAM)
	.venv-upstream/bin/python -m pytest $(NIGHTLY_ARGS)

lint: $(VENV)/dev.stamp ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/dev.stamp ## mypy on the package
	$(BIN)/mypy

format: $(VENV)/dev.stamp ## rewrite the sources with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: $(VENV)/dev.stamp ## what pre-commit checks, on every file; `.venv/bin/pre-commit install` makes commits wait for it
	$(BIN)/pre-commit run --all-files

docs: $(VENV)/dev.stamp ## the site, docs/_build/html/index.html; warnings are errors (DOCS=linkcheck checks the links)
	$(BIN)/python -m sphinx -W --keep-going -q -b $(DOCS) $(if $(filter linkcheck,$(DOCS)),-D nb_execution_mode=off) docs docs/_build/$(DOCS)

notebooks: export COSMOFIELDS_NOTEBOOKS = all
notebooks: $(VENV)/dev.stamp ## run every notebook, by nbmake, with warnings as errors (`make test` runs the fastest)
	$(BIN)/python -m pytest tests/test_notebooks.py --durations=8

train: ## a model that ships, from seeds to weights: make train MODEL=no-mass BOXES="a.h5 b.h5" VALIDATION=c.h5
	@test -n "$(BOXES)" && test -n "$(VALIDATION)" || \
		{ echo 'Name the boxes: make train BOXES="a.h5 b.h5" VALIDATION=c.h5' >&2; exit 2; }
	@$(MAKE) --no-print-directory $(VENV)/run.stamp
	COSMOFIELDS=$(BIN)/cosmofields BOXES="$(BOXES)" VALIDATION="$(VALIDATION)" tools/train_model.sh $(MODEL)

bench: $(VENV)/bench.stamp ## side by side with other packages: benchmarks/latest.json and the table in docs/performance.md
	$(BIN)/python -m benchmarks $(NAMES); status=$$?; $(BIN)/python -m benchmarks --table; exit $$status

fuzz: $(VENV)/fuzz.stamp ## files, stores and models of strangers by the ten thousand (CASES=100000 takes hours)
	$(BIN)/python -m tests.fuzz --engine both --target all --cases $(CASES) --findings fuzz-found

slurm: $(VENV)/dev.stamp ## the tests of a real Slurm cluster on this machine (needs slurm-wlm and munge, and root)
	tests/slurm/run.sh

clean: ## remove .venv, caches, builds and demo-output
	rm -rf $(VENV) .venv-min .venv-upstream build dist demo-output docs/_build docs/generated docs/notebooks .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find cosmofields tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment -------------------------------------------------------------------------------

# A PYTHON that was asked for is used or refused; the default gives way to a newer one.
ifeq ($(origin PYTHON),file)
CANDIDATES := $(PYTHON) python3.11 python3.12 python3.13 python3.14
else
CANDIDATES := $(PYTHON)
endif

$(BIN)/python:
	@for py in $(CANDIDATES); do \
		if "$$py" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Creating $(VENV) with $$py ($$("$$py" -V))"; \
			"$$py" -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }; \
			exit 0; \
		fi; \
	done; \
	echo "cosmofields needs Python >= 3.11; tried: $(CANDIDATES). Name one: make PYTHON=/path/to/python3.11 ..." >&2; \
	exit 1

comma := ,

# $(call install,EXTRAS): pinned and editable; pip's output goes to a log that is shown when it fails.
define install
@echo "Installing cosmofields[$(1)] into $(VENV): minutes the first time (log: $(VENV)/install.log)"
@$(BIN)/python -m pip install -c constraints.txt -e ".[$(1)]" > $(VENV)/install.log 2>&1 || \
	{ cat $(VENV)/install.log >&2; echo "The installation failed; see above." >&2; exit 1; }
endef

$(VENV)/run.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,$(RUN_EXTRAS))
	@touch $@

$(VENV)/fuzz.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,$(DEV_EXTRAS)$(comma)fuzz)
	@touch $(VENV)/dev.stamp $(VENV)/run.stamp $@

$(VENV)/bench.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,$(BENCH_EXTRAS))
	@touch $(VENV)/run.stamp $@

# dev includes run.
$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,$(DEV_EXTRAS))
	@touch $(VENV)/run.stamp $@
