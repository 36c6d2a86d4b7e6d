# `make demo` and `make test` are all that a newcomer needs; both create the environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export VIDISTILL_STORE ?= $(CURDIR)/build/store

.PHONY: install demo test test-all lint clean
install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "vidistill needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -e '.[dev,crops,pool,s3,dask,tune]' -c constraints.txt
	# ultralytics brings opencv-python, which writes over opencv-contrib-python's files and takes the CSRT tracker with it
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps opencv-contrib-python -c constraints.txt
	mkdir -p build/typing/vidistill
	for room in deployments flows models storage tasks; do ln -sfn $(CURDIR)/$$room build/typing/vidistill/$$room; done
	ln -sfn $(CURDIR)/storage/vidistill/__init__.py build/typing/vidistill/__init__.py
	touch $@

demo: install
	$(BIN)/vidistill demo --out build/demo

# Two processes, each on one thread; tests/conftest.py says what they share. What is marked `slow` runs in test-all alone:
# ten kills, Ctrl-C at every moment, the mutations, the teachers that must not learn from single frames.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 20

test: install lint
	$(PYTEST)

test-all: install lint
	$(PYTEST) -m ''

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info
