# `make demo` and `make test` set up everything they need on a bare Debian or macOS with python3.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check install dev kernels examples fuzz bench clean

demo: install  ## set up, then run the main job
	$(BIN)/nocopy demo

test: dev check  ## set up, then run every check and test
	NOCOPY_REQUIRE_DEVICES=$$(tools/setup.sh devices) $(BIN)/python -m pytest -n auto --dist worksteal

check: dev  ## formatting, types, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.hpp' '*.cu' '*.cuh' 'examples/*.c' 'src/*.c')
	$(BIN)/pyright
	$(BIN)/python tools/generate.py --check
	$(BIN)/python tools/compile_kernels.py --check
	$(BIN)/python tools/build_guests.py --check
	$(BIN)/python tools/build_examples.py --check
	$(BIN)/python tools/cli_docs.py --check
	$(BIN)/python tools/performance_docs.py --check

install: $(VENV)/installed  ## the package as a user has it

dev: $(VENV)/developed  ## the package, editable, with the tools that the tests need

$(VENV)/bin/python:
	tools/setup.sh venv $(PYTHON) $(VENV)

$(VENV)/installed: pyproject.toml CMakeLists.txt | $(VENV)/bin/python
	tools/setup.sh compiler
	test -e $(VENV)/developed || $(BIN)/pip install --quiet '.[plot]'
	touch $@

$(VENV)/developed: pyproject.toml CMakeLists.txt $(wildcard src/nocopy/kernels/cpu/*) | $(VENV)/bin/python
	tools/setup.sh compiler vulkan objects
	$(BIN)/pip install --quiet 'scikit-build-core>=0.11' 'cmake>=3.25' ninja 'pip>=25.1'
	$(BIN)/pip install --quiet --no-build-isolation --group dev -e '.[plot]' -Ccmake.define.NOCOPY_WERROR=ON
	touch $@ $(VENV)/installed

kernels: dev  ## regenerate the headers, SPIR-V and Metal sources
	$(BIN)/python tools/generate.py
	$(BIN)/python tools/compile_kernels.py

examples: dev  ## rebuild the example guests and those of the benchmarks
	$(BIN)/python tools/build_guests.py
	$(BIN)/python tools/build_examples.py

fuzz: dev  ## ten minutes of hostile tapes on every player of this machine
	$(BIN)/python tools/fuzz.py --minutes 10

bench: dev  ## every benchmark, as tables
	for name in hostcall roundtrip share matmul; do $(BIN)/nocopy bench $$name; done

clean:
	rm -rf $(VENV) build
