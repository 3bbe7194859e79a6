# FFS: what a developer types. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
BUILD ?= build/dev
CMAKE_ARGS ?= -DFFS_WERROR=on

.DEFAULT_GOAL := help
.PHONY: help build

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

build: ## build the native modules into ffs/
	@cmake -S . -B $(BUILD) -G Ninja $(CMAKE_ARGS) -DPython_EXECUTABLE=$(abspath $(PY)) >/dev/null
	@cmake --build $(BUILD)
	@cp $(BUILD)/native/_*.so ffs/
