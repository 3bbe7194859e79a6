# FFS: what a developer types. `make help` lists the targets; every target sets up what it needs.
VENV := .venv
PY := $(VENV)/bin/python
BUILD ?= build/dev
CMAKE_ARGS ?=
ARGS ?=
# Tests wait more than they compute: more processes than cores, each with a cluster of its own; a
# few chosen tests run in one.
WORKERS ?= $(if $(ARGS),0,3)
PYTEST := $(PY) -m pytest -n $(WORKERS) --dist worksteal
SOURCES := ffs server client bench tests
C_FILES = $(shell find native bench -name '*.[ch]')

.DEFAULT_GOAL := help
.PHONY: help setup setup-test build demo test test-rdma test-rdma-full lint asan tsan fuzz fuzz-corpus \
	bench soak wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

setup: ## Debian packages, .venv and the project in it (what is missing)
	@.ci/setup.sh

setup-test: # and the programs that tests and linters call
	@.ci/setup.sh test

build: ## compile the native modules into ffs/
	@.ci/build.sh $(BUILD) ffs $(CMAKE_ARGS)

demo: setup ## start a cluster, store real files, train on them: under a minute after set-up
	@$(MAKE) --no-print-directory build
	@$(PY) -m ffs.demo $(ARGS)

test: setup-test ## all tests (ARGS="-k name" for some)
	@$(MAKE) --no-print-directory build
	$(PYTEST) $(ARGS)

test-rdma: setup-test ## RDMA on software's devices: chosen tests in a guest kernel under QEMU
	@$(MAKE) --no-print-directory build
	$(PY) -m tests.rdma.run $(ARGS)

test-rdma-full: setup-test ## the whole client suite over RDMA, 10,000 races, sanitizers (hours)
	@$(MAKE) --no-print-directory build
	$(PY) -m tests.rdma.run --full $(ARGS)
	$(PY) -m tests.rdma.run --asan $(ARGS)

lint: setup-test ## ruff, mypy, import-linter, clang-format, clang-tidy
	@$(MAKE) --no-print-directory build
	@.ci/lint.sh

asan: setup-test ## tests of the native code under the address and undefined-behaviour sanitizers
	@.ci/sanitize.sh asan

tsan: setup-test ## tests of the native code under the thread sanitizer
	@.ci/sanitize.sh tsan

fuzz: setup-test ## a minute of libFuzzer and of atheris on what reads a peer's bytes (FFS_FUZZ_S=60)
	@$(MAKE) --no-print-directory build
	@.ci/fuzz.sh run

fuzz-corpus: setup-test # fuzz from fresh seeds and minimise into tests/fuzz/corpus, to be committed
	@$(MAKE) --no-print-directory build
	@.ci/fuzz.sh corpus

bench: setup-test ## the benchmark's short form
	@$(MAKE) --no-print-directory build
	$(PY) -m ffs.bench $(ARGS)

soak: setup-test ## hours of searching for rare failures
	@$(MAKE) --no-print-directory build
	FFS_ROUNDS=100 FFS_FLIP_STRIDE=10 FFS_SIM_SEEDS=20000 FFS_SIM_FIRST=$$(date +%s) FFS_TIMES=1 \
		$(PY) -m pytest \
		-o timeout=7200 -o faulthandler_timeout=0 \
		tests/sim tests/cluster/test_crash.py tests/cluster/test_corruption.py \
		tests/cluster/test_failover.py tests/cluster/faults tests/unit/server/meta/test_fail_nth.py \
		tests/torch/test_ring.py tests/torch/test_loader.py tests/torch/test_checkpoint_kill.py $(ARGS)

wheel: setup-test ## the wheel into dist/
	$(PY) -m pip wheel --no-deps --no-build-isolation -w dist .

clean: ## remove what was built (not .venv)
	rm -rf build dist ffs/_reader*.so ffs/_storage*.so
