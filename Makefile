# Every target says what it does in `make help`. `make demo` and `make test` do all the set-up themselves.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
OLD_RUNTIME := 1.23.2
# What an installation depends on: when one of these changes, the next target installs again.
SOURCES := pyproject.toml setup.py constraints.txt CMakeLists.txt $(wildcard csrc/*.cpp csrc/*.hpp csrc/*/kernels.cpp)
# The build of the extension is pinned too; newer pips read the second variable for it, older ones the first.
INSTALL := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=$(CURDIR)/constraints.txt \
	PIP_BUILD_CONSTRAINT=$(CURDIR)/constraints.txt $(PY) -m pip install --no-input
CPP := $(wildcard csrc/*.cpp csrc/*.hpp csrc/*/*.cpp csrc/*/*.hpp)

.PHONY: help demo test pytest ctest lint format types arch native golden campaign oracle bench wheel clean

help: ## List the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

$(PY):
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; name one with make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# What it takes to serve: no torch, no tools.
$(VENV)/.installed: $(SOURCES) | $(PY)
	@$(PYTHON) examples/installing.py "installing edgectl" $(SHELL) -c '$(INSTALL) -e ".[cpu,serve]"'
	@touch $@

# What it takes to develop. PyPI's torch brings CUDA; TORCH_INDEX names an index with a smaller one.
$(VENV)/.installed-dev: $(SOURCES) | $(PY)
ifdef TORCH_INDEX
	@$(INSTALL) --index-url $(TORCH_INDEX) torch
endif
	@$(PYTHON) examples/installing.py "installing edgectl and its tools" $(SHELL) -c '$(INSTALL) -e ".[cpu,serve,dev]"'
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed ## One model across three agents on this machine, and the same tokens in one process (KEEP=1 keeps serving)
	@$(PY) examples/demo.py $(if $(KEEP),--keep)

test: ctest pytest ## The whole test suite

pytest: $(VENV)/.installed-dev build/onnxruntime-$(OLD_RUNTIME)
	EDGE_OLD_RUNTIME=$(CURDIR)/build/onnxruntime-$(OLD_RUNTIME) $(PY) -m pytest $(PYTEST_ARGS)

# The newest ONNX Runtime for JetPack 6 on Python 3.10: parity is tested on it too.
build/onnxruntime-$(OLD_RUNTIME): | $(VENV)/.installed-dev
	@$(PY) -m pip install -q --no-deps --target $@.part onnxruntime==$(OLD_RUNTIME)
	@mv $@.part $@

ctest: ## The kernels' own tests, on every instruction set of this machine
	cmake -S . -B build/ctest -DEDGE_NATIVE_MODULE=OFF -DEDGE_NATIVE_TESTS=ON -DEDGE_DEVELOPER=ON
	cmake --build build/ctest --parallel
	ctest --test-dir build/ctest --output-on-failure

lint: types arch ## ruff, mypy, import contracts, clang-format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	@if command -v clang-format >/dev/null; then echo clang-format --dry-run; clang-format --dry-run --Werror $(CPP); fi

types: $(VENV)/.installed-dev ## mypy --strict, as Python 3.10
	$(PY) -m mypy

arch: $(VENV)/.installed-dev ## Who may import whom
	$(VENV)/bin/lint-imports

format: $(VENV)/.installed-dev ## Rewrite sources in the project's format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	@if command -v clang-format >/dev/null; then clang-format -i $(CPP); fi

native: $(VENV)/.installed-dev ## Build the extension again, in place
	$(PY) setup.py build_ext --inplace

golden: $(VENV)/.installed-dev ## Rewrite the golden scripts; commit only what you can explain
	$(PY) -m pytest tests/golden --rewrite-golden -q
	git --no-pager diff --stat -- tests/golden

campaign: $(VENV)/.installed-dev ## The property tests with many random examples (EDGE_CAMPAIGN_EXAMPLES=3000)
	EDGE_HYPOTHESIS_PROFILE=campaign $(PY) -m pytest --timeout 0 -m "not cluster" $(PYTEST_ARGS)

oracle: $(VENV)/.installed-dev ## The exact planners against brute force and MILP: 2,000 and 200 random instances
	EDGE_ORACLE=1 $(PY) -m pytest --timeout 0 -q tests/planner $(PYTEST_ARGS)

bench: $(VENV)/.installed-dev ## Every benchmark into benchmarks/results (PEERS_PYTHON=… has onnxruntime-genai, llama-cpp-python and gguf)
	@for bench in benchmarks/bench_*.py; do \
		name=$${bench##*/bench_}; name=$${name%.py}; echo "== $$name"; \
		case $$name in \
			decode) more="$(if $(PEERS_PYTHON),--peers-python $(PEERS_PYTHON))";; \
			mitigation) more=--again;; \
			*) more=;; \
		esac; \
		$(PY) $$bench --out benchmarks/results/$$name.json $$more; \
	done

wheel: $(VENV)/.installed-dev ## sdist and wheel in dist/
	$(PY) -m build --outdir dist .

clean: ## Remove what was built; .venv stays
	rm -rf build dist *.egg-info agent/compute/_native*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .demo
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
