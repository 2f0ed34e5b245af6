# Each command makes a virtual environment in .venv, installs the packages of its lock, and runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# --no-compile: modules are compiled on their first import, which saves a third of the time of an installation.
# --no-build-isolation: source packages are built with the setuptools of the lock, not with the newest.
# editable_mode=compat: a path on sys.path, which editors and type checkers follow, in place of an import hook.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --no-build-isolation
# For builds of torch that come without Triton.
TRITON := triton==3.9.0; platform_system == 'Linux'
# The versions that builds of torch pin. Each has a folder of its own, and kernels are compiled with each.
TRITONS := 3.6.0 3.7.0 3.7.1 3.8.0 3.9.0
TRITONS_OF_TESTS := 3.6.0 3.7.1
UV := uv==0.13.9

.PHONY: demo test quick check sanitize soak mutants kernels locks clean

demo: $(VENV)/.installed
	$(BIN)/python -m rwkv_batch.run jobs/demo.yaml

# Test files are distributed over processes. A file stays in one process, because its tests share fixtures.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-test $(TRITONS_OF_TESTS:%=$(VENV)/triton/%/.installed) check
	$(PYTEST)

# For every commit: all tests but those of tests/slow.py.
quick: $(VENV)/.installed-test check
	$(PYTEST) -m "not slow and not soak"

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.cu' '*.h')

# The CPU kernels with random shapes and numbers, in a library that ends the process at an access outside of an array, at a
# signed overflow and at other undefined behavior. Needs g++ with its sanitizers. Emulated processors are left out, and
# tests of builds and of constraints: those are about other libraries, and about processes with little memory.
NOT_SANITIZED := tests/kernels/test_cpu_build.py $(wildcard tests/text/test_constraint*.py)
SANITIZED := $(filter-out $(NOT_SANITIZED),$(wildcard tests/kernels/test_cpu_*.py tests/text/test_*.py)) \
	tests/engine/test_selection.py tests/engine/test_shared_lengths.py tests/engine/test_sampler.py
sanitize: $(VENV)/.installed-test
	PYTHONPATH=tests $(BIN)/python -m kernels.sanitizers --seeds 10 --timeout 3600 -k "not AVX" $(SANITIZED)

# Kills at many random moments, faults of object stores (10 schedules of each seed), many examples of each property,
# mutated files (50 of each seed), whole benchmarks and clusters, and long jobs.
SEEDS ?= 20
SIZE ?= 1
soak: $(VENV)/.installed-test
	$(BIN)/python -m pytest --seeds $(SEEDS) --timeout 3600 -k "crash or sigkill or hypothesis or mutated or fault_schedules"
	$(BIN)/python -m pytest -m soak --timeout 3600 tests/benchmarks tests/docs tests/integrations tests/job
	$(BIN)/python -m benchmarks.soak --size $(SIZE)

# Draws small changes of the core by a seed and runs the tests on each. ONLY=engine,job/plan.py draws from these.
N ?= 100
SEED ?= 0
JOBS ?= 2
mutants: $(VENV)/.installed-test
	PYTHONPATH=tests $(BIN)/python -m mutation --number $(N) --seed $(SEED) --jobs $(JOBS) --only "$(ONLY)"

# All compilations for all cards, all launches through Triton's launch path, recorded steps of all versions.
kernels: $(TRITONS:%=$(VENV)/triton/%/.installed)
	PYTHONPATH=tests $(BIN)/python -m kernels.aot_matrix $(TARGETS)
	$(BIN)/python -m pytest -m soak --timeout 3600 tests/kernels tests/engine

# torch is installed with its dependencies, which differ between its builds and are not in the lock. All other packages
# are in the lock, so pip resolves nothing.
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

# Writes both locks from pyproject.toml. Versions in locks/test.txt stay if they still satisfy pyproject.toml;
# `make locks UPGRADE=--upgrade` takes the newest. locks/demo.txt has the versions of locks/test.txt where possible.
COMPILE := $(BIN)/uv pip compile --quiet --config-file locks/uv.toml pyproject.toml
locks: $(VENV)/.installed
	$(INSTALL) "$(UV)"
	$(COMPILE) $(UPGRADE) --python-version 3.11 --extra test --output-file locks/test.txt
	cp locks/test.txt locks/demo.txt
	$(COMPILE) --python-version 3.10 --output-file locks/demo.txt

clean:
	rm -rf $(VENV) build dist *.egg-info out
