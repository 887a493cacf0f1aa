# Every target sets up what it needs: a virtual environment in .venv, once, and again when pyproject.toml changes. With PYTHON=python3.12
# (or another) it is one of its own, .venv-3.12, beside the usual one.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?=
USUAL := 3.11
FOUND := $(shell $(or $(PYTHON),true) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := $(if $(PYTHON),.venv$(addprefix -,$(filter-out $(USUAL),$(or $(FOUND),missing))),.venv)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := onnx,bench,models,farm,docs,dev
TORCH := 2.13.0
# Without what they require, which is there or would bring another torch, and apart: other packages that found this torchvision would
# import it and fail beside a CPU build of torch.
VISION := timm==1.0.31 torchvision==0.28.0
WORKERS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=

# Threads that spin or are pinned by a library make two-core machines many times slower.
export OMP_NUM_THREADS := 1
export OMP_WAIT_POLICY := passive
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

.PHONY: help setup arm-tools arm-python arm-board cuda-tools demo test test-fast sweep opdb sweep-heads fuzz mutants lint format bench docs clean cxx

help:
	@echo "make demo       train, prune, compile, compare (5 minutes)"
	@echo "make test       all tests (25 minutes on two cores), of long enumerations a part each day"
	@echo "make test-fast  the tests without slow ones (5 minutes)"
	@echo "make sweep      errors of every network x density x pattern x batch x door (an hour)"
	@echo "make opdb       every float32 sample of PyTorch's operator database through both doors (hours)"
	@echo "make sweep-heads  all models with heads of transformers and timm; make test takes some each day"
	@echo "make fuzz       random programs through every door against eager; MINUTES=30 SEED=1"
	@echo "make mutants    plants bugs of one line, and counts those that the fast tests notice (an hour)"
	@echo "make arm-tools  installs a cross compiler and an emulator for ARM (Debian packages), which its tests need"
	@echo "make arm-python puts a Python for ARM, from Debian's archive, into build/arm, for tests that run artifacts by it"
	@echo "make arm-board  puts TVM for ARM beside it, for tests that tune on an emulated board"
	@echo "make cuda-tools puts Triton into build/cuda, which compiles for GPUs that are not here, and runs their kernels on numpy"
	@echo "make lint       ruff and mypy"
	@echo "make docs       the documentation as a site in build/docs; needs no network"
	@echo "make bench      model x sparsity x rival; BENCH_ARGS='--models mobilenet_v2 --threads 2'"
	@echo "make clean      remove the environments and all caches of this folder"
	@echo
	@echo "With PYTHON=python3.12 each of them runs on that interpreter, in .venv-3.12."

setup: $(STAMP)

# torch goes first and pinned, so that pip never resolves it on its own; the CPU build where pip finds one.
$(STAMP): pyproject.toml
	@python="$(PYTHON)"; \
	[ -n "$$python" ] || python=$$(for name in python$(USUAL) python3 python; do \
	  [ "$$("$$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = $(USUAL) ] && echo "$$name" && break; done || true); \
	if [ -z "$$python" ]; then echo "Python $(USUAL) was not found: put it on PATH as python$(USUAL), or name another one: make PYTHON=python3.12 ..." >&2; exit 1; fi; \
	if [ "$(VENV)" = .venv-missing ]; then "$$python" -c pass || true; echo "PYTHON=$(PYTHON) cannot be run." >&2; exit 1; fi; \
	[ -x $(BIN)/python ] || "$$python" -m venv $(VENV) || { rm -rf $(VENV); echo "No virtual environment: Debian and Ubuntu need the package python$(or $(FOUND),$(USUAL))-venv." >&2; exit 1; }
	@$(BIN)/python -c 'import torch, sys; sys.exit(torch.__version__.partition("+")[0] != "$(TORCH)")' 2>/dev/null \
	  || $(BIN)/python -m pip install --quiet "torch==$(TORCH)+cpu" 2>/dev/null \
	  || $(BIN)/python -m pip install "torch==$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[$(EXTRAS)]"
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/vision $(VISION) || echo "No timm: its models are not tested." >&2
	@touch $@

# Inductor, our rival and the home of what no region covers, compiles C++.
cxx:
	@command -v "$${CXX:-g++}" >/dev/null || echo "No C++ compiler ($${CXX:-g++}): what needs Inductor is skipped or reported as failed." >&2

# What builds and runs programs for ARM; tests that need it are skipped without. Debian's names.
ARM_TOOLS = gcc-aarch64-linux-gnu qemu-user-static
arm-tools:
	@if command -v aarch64-linux-gnu-gcc >/dev/null && command -v qemu-aarch64-static >/dev/null; then exit 0; fi; \
	root=; [ "$$(id -u)" = 0 ] || root=sudo; \
	$$root apt-get -o Acquire::http::Timeout=20 update -qq && $$root apt-get install -y -qq --no-install-recommends $(ARM_TOOLS) libc6-dev-arm64-cross >/dev/null

arm-python: $(STAMP)
	@tests/backends/arm/python.sh build/arm $(BIN)/python
arm-board: $(STAMP)
	@tests/backends/arm/python.sh build/arm $(BIN)/python board

# Not in the environment: torch would find it there, and ask it for GPUs.
TRITON = triton==3.6.*
cuda-tools: $(STAMP)
	@[ -d build/cuda/triton ] || $(BIN)/python -m pip install --quiet --no-deps --target build/cuda "$(TRITON)"

demo: $(STAMP) cxx
	$(BIN)/python benchmarks/demo.py

test: $(STAMP) cxx
	$(PYTEST)

test-fast: $(STAMP) cxx
	$(PYTEST) -m "not slow"

sweep: $(STAMP)
	SPARSEC_SWEEP=1 $(BIN)/python -m pytest tests/test_acceptance_errors.py -k kind_batch_and_door -s $(PYTEST_ARGS)

# Goes on where it was stopped; remove the folder to begin anew.
OPDB_ARGS ?= --folder build/opdb
opdb: $(STAMP)
	SPARSEC_CACHE_DIR=$(CURDIR)/build/opdb/kernels $(BIN)/python -m tests.opdb $(OPDB_ARGS)

sweep-heads: $(STAMP) cxx
	SPARSEC_SWEEP=1 $(PYTEST) tests/models/heads

MINUTES ?= 30
SEED ?=
mutants: $(STAMP) cxx
	$(BIN)/python -m tests.mutants

fuzz: $(STAMP) cxx
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) --out build/fuzz

# The package's folders lie apart; what reads the source without importing it follows links where it cannot follow an editable install.
define linked
	@rm -rf $(1) && mkdir -p $(1)/sparsec
	@ln -s $(CURDIR)/compiler/* $(addprefix $(CURDIR)/,passes backends autotune models) $(1)/sparsec
endef

TYPED := build/typed
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(call linked,$(TYPED))
	MYPYPATH=$(TYPED) $(BIN)/mypy -p sparsec
	MYPYPATH=$(TYPED) $(BIN)/mypy --warn-unused-ignores --follow-imports silent tests/typed_calls.py

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) cxx
	$(BIN)/python benchmarks/networks.py $(BENCH_ARGS)

# Warnings are errors. The variable turns off an announcement that the theme prints at every build.
SITE ?= build/docs
docs: $(STAMP)
	$(call linked,build/documented)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --site-dir $(SITE)

clean:
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
