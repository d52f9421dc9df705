# The commands of this project. Each sets up .venv by itself when it is missing or stale.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUNTIME := .venv-runtime

.PHONY: demo test test-slow test-runtime test-node test-cpp test-oldest check format clean

demo: $(READY)
	$(BIN)/python -m s2ap_export.commands.demo --output build/model.onnx

# A file a process, one thread each: small networks gain nothing from more. In the order of the folders, whose last
# files are short: by the number of their tests, a long file of one test would come last.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

test: $(READY)
	$(PYTEST) -m "not slow"

test-slow: $(READY)
	$(PYTEST)

# The runtime as users install it, without torch, in a small environment of its own.
test-runtime: $(RUNTIME)/.ready
	$(RUNTIME)/bin/python -m pytest tests/runtime tests/contract

# The model file in JavaScript, in Node.js, as WebAssembly and in Chromium, without this package; needs node and npm.
test-node: $(READY)
	cd examples/javascript && npm install --ignore-scripts --no-package-lock --no-audit --no-fund
	$(BIN)/python -m pytest tests/contract/test_runtimes.py tests/contract/test_browser.py -rs -k "node or webassembly or browser"

# The model file in C++, without this package; needs cmake, g++ and ONNX Runtime's headers in $ONNXRUNTIME_ROOT/include.
test-cpp: $(READY)
	$(BIN)/python -m pytest tests/contract/test_runtimes.py -k "cpp or program"

# The model file and the runtime on the oldest ONNX Runtime that pyproject.toml allows.
test-oldest: $(READY)
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --disable-pip-version-check --quiet "onnxruntime==1.22.*" \
	    "numpy>=2.0" "onnx>=1.21" "click>=8.2" "orjson>=3.10" "pillow>=11" "pydantic>=2.10" "rich>=13.9"
	$(BIN)/python -m pytest tests/contract/test_runtimes.py -k oldest

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf build dist .venv .venv-runtime .venv-oldest .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage

$(READY): EXTRAS := train,dev
$(RUNTIME)/.ready: EXTRAS := test
%/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "s2ap-defend needs Python 3.11 or newer, found $$($(PYTHON) --version); set PYTHON=/path/to/python3"; exit 2; }
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@
