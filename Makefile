# The two commands of the README. Each makes a virtual environment in .venv, installs what constraints.txt pins, and runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check clean

demo: $(VENV)/.installed
	$(BIN)/python -m rwkv_batch.run jobs/demo.yaml

test: $(VENV)/.installed-test check
	$(BIN)/python -m pytest

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info out

# Kernels are compiled by the Tritons that torch is installed with, which lie beside each other: two of them for `test`.
TRITONS := 3.6.0 3.7.0 3.7.1 3.8.0 3.9.0
.PHONY: kernels
test: $(VENV)/triton/3.6.0/.installed $(VENV)/triton/3.7.1/.installed

kernels: $(TRITONS:%=$(VENV)/triton/%/.installed)
	PYTHONPATH=tests $(BIN)/python -m kernels.aot_matrix $(TARGETS)

$(VENV)/triton/%/.installed: | $(VENV)/.installed-test
	rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --no-deps --no-compile --target $(@D) triton==$*
	touch $@
