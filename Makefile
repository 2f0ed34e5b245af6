# The commands of the README. Each makes a virtual environment in .venv, installs what its lock pins, and runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# --no-compile: modules are compiled when they are first imported, which saves a third of the time of an installation.
# --no-build-isolation: what comes as source is built with the setuptools of the lock, not with the newest.
# editable_mode=compat: a path on sys.path, which editors and type checkers follow, in place of an import hook.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --no-build-isolation
# For builds of torch that bring no Triton of their own.
TRITON := triton==3.9.0; platform_system == 'Linux'
# Those that builds of torch pin. They lie beside each other; kernels are compiled by each.
TRITONS := 3.6.0 3.7.0 3.7.1 3.8.0 3.9.0
TRITONS_OF_TESTS := 3.6.0 3.7.1
UV := uv==0.13.9

.PHONY: demo test quick check soak mutants kernels locks clean

demo: $(VENV)/.installed
	$(BIN)/python -m rwkv_batch.run jobs/demo.yaml

# Files of tests, shared out to processes; each file stays whole, as its tests share what they have set up.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-test $(TRITONS_OF_TESTS:%=$(VENV)/triton/%/.installed) check
	$(PYTEST)

# For every commit: all but what tests/slow.py lists.
quick: $(VENV)/.installed-test check
	$(PYTEST) -m "not slow and not soak"

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Many random moments to kill at, and many examples of each property.
SEEDS ?= 20
soak: $(VENV)/.installed-test
	$(BIN)/python -m pytest --seeds $(SEEDS) --timeout 3600 -k "crash or sigkill or hypothesis"

# Small changes of the core, drawn by a seed: do the tests notice them? ONLY=engine,job/plan.py draws from these.
N ?= 100
SEED ?= 0
JOBS ?= 2
mutants: $(VENV)/.installed-test
	PYTHONPATH=tests $(BIN)/python -m mutation --number $(N) --seed $(SEED) --jobs $(JOBS) --only "$(ONLY)"

# Every compilation for every card, every launch through Triton's launch path, every version's recorded step.
kernels: $(TRITONS:%=$(VENV)/triton/%/.installed)
	PYTHONPATH=tests $(BIN)/python -m kernels.aot_matrix $(TARGETS)
	$(BIN)/python -m pytest -m soak --timeout 3600 tests/kernels tests/engine

# torch comes with its dependencies, as its builds differ in them; each build pins those that the lock does not know.
# Everything else is in the lock, so nothing is left to resolve.
$(VENV)/.installed: pyproject.toml locks/demo.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --constraint locks/demo.txt torch
	$(BIN)/python -m pip show --quiet triton 2> /dev/null || $(INSTALL) --no-deps "$(TRITON)"
	$(INSTALL) --no-deps --requirement locks/demo.txt
	$(INSTALL) --no-deps --config-settings editable_mode=compat --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed locks/test.txt
	$(INSTALL) --no-deps --requirement locks/test.txt
	touch $@

$(VENV)/triton/%/.installed: | $(VENV)/.installed-test
	rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --no-deps --no-compile --target $(@D) triton==$*
	touch $@

# Writes both locks from pyproject.toml. Versions in the tests' lock stay where they still satisfy it;
# `make locks UPGRADE=--upgrade` takes the newest. The demo's lock follows the tests' lock wherever both hold.
COMPILE := $(BIN)/uv pip compile --quiet --config-file locks/uv.toml pyproject.toml
locks: $(VENV)/.installed
	$(INSTALL) "$(UV)"
	$(COMPILE) $(UPGRADE) --python-version 3.11 --extra test --output-file locks/test.txt
	cp locks/test.txt locks/demo.txt
	$(COMPILE) --python-version 3.10 --output-file locks/demo.txt

clean:
	rm -rf $(VENV) build dist *.egg-info out
