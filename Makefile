# The commands of this repository. On a fresh machine: Python 3.11+, g++ and make; the rest goes into .venv.
#
#   make demo       train, prune, convert, measure, generate (about three minutes on two cores)
#   make test       formatters, linters, types and the whole test suite; what CI runs
#   make sanitize   the C++ code under AddressSanitizer and UBSan, in a build of its own
#   make emulate    the AVX-512 level executed through SIMDe on a CPU without it (needs its headers)
#   make triton     the Triton tests with another Triton, put before the installed one: TRITON=triton==3.6.0
#
#   TORCH=torch==2.13.0   the torch to install        PYTHON=python3.12   the Python to use
#   VENV=.venv            where to                    ARGS="tests/ops -k nm"   what pytest runs
#   WORKERS=auto          test processes, a core each, 4 at most; 0: all tests in one process

TORCH ?= torch==2.13.0
TRITON ?= triton==3.6.0
VENV ?= .venv
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,\
            $(shell $(p) -c 'import sys; assert sys.version_info >= (3, 11); print("$(p)")' 2>/dev/null)))
ARGS ?=
WORKERS ?= auto

BIN := $(abspath $(VENV))/bin
STAMPS := $(VENV)/stamps
NATIVE := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh') setup.py
FORMATTED := $(filter-out setup.py,$(NATIVE)) tests/simulated/runtime.cpp
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# one ninja folder for every normal build, so that a rebuild compiles what changed
BUILD_EXT = EVOPRUNE_BUILD_DIR=$(abspath build/ninja)

.DEFAULT_GOAL := help
.PHONY: help demo test lint sanitize emulate triton clean
.DELETE_ON_ERROR:

help:
	@sed -n '3,11s/^# \{0,1\}//p' Makefile

demo: $(STAMPS)/built
	$(BIN)/python -m bench.demo

test: $(STAMPS)/built-strict $(STAMPS)/simulated lint
	$(BIN)/python -m pytest -rsfE --numprocesses=$(WORKERS) --maxprocesses=4 --dist=worksteal $(ARGS)

lint: $(STAMPS)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

# ---- the environment: venv -> torch and build tools -> the package -> native code (where its progress is seen) ----
$(STAMPS)/torch:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and was not found; set PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make a virtual environment (on Debian and Ubuntu: install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)" numpy ninja "pybind11>=2.13" "setuptools>=70" wheel
	$(BIN)/python -c 'import torch; print(f"torch=={torch.__version__}")' > $(VENV)/constraints.txt
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/installed: $(STAMPS)/torch pyproject.toml
	EVOPRUNE_BUILD=none $(PIP) --no-build-isolation --constraint $(VENV)/constraints.txt -e '.[test]'
	@touch $@

# the demo runs on the CPU: nvcc is left out of it
$(STAMPS)/built: $(STAMPS)/installed $(NATIVE)
	EVOPRUNE_BUILD=cpu $(BUILD_EXT) $(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(STAMPS)/built-strict: $(STAMPS)/installed $(NATIVE)
	EVOPRUNE_STRICT=1 $(BUILD_EXT) $(BIN)/python setup.py --quiet build_ext --inplace
	@touch $(STAMPS)/built $@

# the CUDA kernels, as the tests execute them without a GPU (nothing happens where no nvcc is)
$(STAMPS)/simulated: $(STAMPS)/installed $(NATIVE) $(wildcard tests/simulated/*)
	$(BIN)/python -m tests.simulated
	@touch $@

# ---- native code under other flags: built beside the normal build, loaded through EVOPRUNE_LIBRARY_DIR ----
build_variant = $(BIN)/python setup.py --quiet build_ext --build-lib build/$(1) --build-temp build/$(1)/ninja
with_variant = EVOPRUNE_LIBRARY_DIR=$(abspath build/$(1)/evoprune_kernels)
CXX_ ?= $(if $(filter default,$(origin CXX)),g++,$(CXX))
runtime = $(shell $(CXX_) -print-file-name=$(1))

# leaks: off, since the interpreter and torch keep memory for the life of the process, which LeakSanitizer reports.
# --capture=sys: a report is written by native code just before the process ends, and must be seen.
# alloc_dealloc_mismatch and odr: torch's own libraries, which are not instrumented, free and define on their terms.
sanitize: $(STAMPS)/installed
	EVOPRUNE_SANITIZE=1 EVOPRUNE_BUILD=cpu $(call build_variant,sanitize)
	LD_PRELOAD="$(call runtime,libasan.so) $(call runtime,libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1:strict_string_checks=1 \
	UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	PYTHONMALLOC=malloc $(call with_variant,sanitize) EVOPRUNE_EXPECT=sanitized \
	$(BIN)/python -m pytest --capture=sys $(or $(ARGS),tests/test_native.py tests/ops tests/formats tests/optim -m "not slow")

emulate: $(STAMPS)/installed
	@echo '#include <simde/x86/avx512.h>' | $(CXX_) -E -x c++ - -o /dev/null 2>/dev/null || \
	  { echo "the SIMDe headers are missing (on Debian and Ubuntu: apt-get install libsimde-dev)"; exit 1; }
	EVOPRUNE_EMULATE=avx512 EVOPRUNE_BUILD=cpu $(call build_variant,emulate)
	$(call with_variant,emulate) EVOPRUNE_EXPECT=emulated \
	$(BIN)/python -m pytest $(or $(ARGS),tests/test_native.py tests/ops tests/formats tests/optim -m "not slow")

# ---- another Triton: a folder that stands first on the path of the same environment (some 700 MB) ----
OTHER_TRITON := $(abspath build/triton)

triton: $(STAMPS)/built
	@echo "$(TRITON)" | cmp -s - $(OTHER_TRITON)/asked || { rm -rf $(OTHER_TRITON); \
	  $(PIP) --no-deps --target $(OTHER_TRITON) "$(TRITON)" && echo "$(TRITON)" > $(OTHER_TRITON)/asked; }
	PYTHONPATH=$(OTHER_TRITON) $(BIN)/python -c 'import torch, triton; print(f"triton {triton.__version__}, torch {torch.__version__}")'
	PYTHONPATH=$(OTHER_TRITON) EVOPRUNE_EXPECT=$(OTHER_TRITON) $(BIN)/python -m pytest -rsfE $(or $(ARGS),tests/triton)

clean:
	rm -rf build $(VENV) *.egg-info evoprune_kernels/*.so .pytest_cache .mypy_cache .ruff_cache
