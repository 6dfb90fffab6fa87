# A fresh machine with Python and make: `make quickstart`, `make test`.
PYTHON ?= python3
PYTHON_OLDEST ?= python3.11
PYTHON_MIDDLE ?= python3.12
PYTHON_NEWEST ?= python3.13
BACKEND ?= jax
BACKENDS ?= jax tensorflow torch
VENV := .venv
BIN := $(VENV)/bin

export TF_CPP_MIN_LOG_LEVEL ?= 3
export TF_ENABLE_ONEDNN_OPTS ?= 0
# Compiling is most of what the tests do on JAX, and many compile the same.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/$(VENV)/jax-cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0

.PHONY: quickstart test $(addprefix test-,jax tensorflow torch) lint format clean
.PHONY: bench bench-quick docs docs-check gallery
.PHONY: test-compat test-oldest test-newest test-middle test-faults
.PHONY: test-rounding test-fast package test-wheel

quickstart: $(VENV)/quickstart-$(BACKEND)
	KERAS_BACKEND=$(BACKEND) $(BIN)/python examples/quickstart.py

# All parts run, whatever fails, and what failed is named at the end.
test: $(VENV)/xla-flags
	@failed=; for part in lint $(addprefix test-,$(BACKENDS)); do \
	    $(MAKE) --no-print-directory $$part || failed="$$failed $$part"; \
	done; test -z "$$failed" || { echo "Failed:$$failed"; exit 1; }

# Tests run two at a time, each on one thread: that is what two cores hold. The
# backends share the cases of the tests: `tests/helpers/dealing.py` says how.
# `make test CASES=` runs everything on all three.
CASES ?= --deal-cases

test-jax test-tensorflow test-torch: test-%: $(VENV)/xla-flags
	KERAS_BACKEND=$* OMP_NUM_THREADS=1 XLA_FLAGS="$$(cat $<)" \
	    $(BIN)/python -m pytest -n 2 $(CASES) $(PYTEST_ARGS)

# For everyday work, in three minutes: one backend, torch if none is named.
FAST_BACKEND = $(if $(filter file,$(origin BACKEND)),torch,$(BACKEND))
FAST := $(addprefix tests/,arithmetic backend data devices float64 inspection \
	objective optimizers session solvers) $(wildcard tests/test_*.py)

test-fast: $(VENV)/xla-flags
	KERAS_BACKEND=$(FAST_BACKEND) OMP_NUM_THREADS=1 XLA_FLAGS="$$(cat $<)" \
	    $(BIN)/python -m pytest -n 2 -m "not slow" $(FAST) $(PYTEST_ARGS)

# What hangs on the last digits, as other processors compute it: with the kernels
# that OpenBLAS and PyTorch take there, and the instructions that XLA uses. In
# each entry, the second word is the instructions that this processor needs.
KERNELS := Haswell:avx2:avx2:AVX2 SkylakeX:avx512f:avx512:AVX512 \
	Zen:avx2:avx2:AVX2 Nehalem:sse4_2:default:SSE4_2
ROUNDING := $(addprefix tests/,solvers/scipy/test_scipy.py \
	solvers/scipy/test_scipy_claims.py solvers/scipy/test_constraints.py \
	objective/test_bounds.py solvers/test_fresh_run.py \
	solvers/constrained solvers/convergence solvers/quasi_newton \
	solvers/test_claims.py campaigns/test_nist.py)

test-rounding: $(addprefix test-rounding-,$(BACKENDS))

test-rounding-%: $(VENV)/xla-flags
	@failed=; for kernels in $(KERNELS); do \
	    set -- $$(echo $$kernels | tr : ' '); \
	    name=$$1; needed=$$2; torch=$$3; xla=$$4; \
	    if ! grep -qw "$$needed" /proc/cpuinfo; then \
	        echo "Skipped $$name: this processor has no $$needed."; continue; \
	    fi; \
	    for flags in "$$(cat $<)" $(if $(filter torch,$*),,""); do \
	        echo "$*, $$name, XLA_FLAGS=$$flags"; \
	        KERAS_BACKEND=$* OMP_NUM_THREADS=1 OPENBLAS_CORETYPE=$$name \
	        ATEN_CPU_CAPABILITY=$$torch \
	        XLA_FLAGS="$$flags --xla_cpu_max_isa=$$xla" \
	            $(BIN)/python -m pytest -n 2 $(CASES) $(ROUNDING) \
	            $(PYTEST_ARGS) || failed="$$failed $$name$${flags:+,quick}"; \
	    done; \
	done; test -z "$$failed" || { echo "Failed on $*:$$failed"; exit 1; }

# The campaign of faults, on every backend; it prints a table.
test-faults: $(VENV)/test
	for backend in $(BACKENDS); do \
	    KERAS_BACKEND=$$backend OMP_NUM_THREADS=1 KILLS=20 \
	    $(BIN)/python -m pytest -n 2 tests/faults \
	        tests/processes/test_faults.py $(PYTEST_ARGS) || exit 1; \
	done

# The oldest and the newest releases that are supported, a backend each, on the
# Pythons that are. torch's CPU build may be had for one Python alone.
test-compat: test-oldest test-middle test-newest

test-oldest: $(VENV)-oldest/test
	KERAS_BACKEND=torch OMP_NUM_THREADS=1 \
	    $(VENV)-oldest/bin/python -m pytest -n 2 $(PYTEST_ARGS)

test-middle: $(VENV)-middle/test
	KERAS_BACKEND=tensorflow OMP_NUM_THREADS=1 \
	    $(VENV)-middle/bin/python -m pytest -n 2 $(PYTEST_ARGS)

test-newest: $(VENV)-newest/test
	KERAS_BACKEND=jax OMP_NUM_THREADS=1 \
	    $(VENV)-newest/bin/python -m pytest -n 2 $(PYTEST_ARGS)

lint: $(VENV)/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	KERAS_BACKEND=jax $(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/lint_prose.py

format: $(VENV)/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The sdist and the wheel, in dist/, and what PyPI would say of them.
package: $(VENV)/package
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

# The README's first code, by the wheel in an environment that has no more.
test-wheel: package
	rm -rf $(VENV)-wheel
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet \
	    $(if $(filter torch,$(BACKEND)),$(TORCH)) "$$(ls dist/*.whl)[$(BACKEND)]"
	cd $(VENV)-wheel && KERAS_BACKEND=$(BACKEND) bin/python \
	    "$(CURDIR)/tests/helpers/first_code.py" "$(CURDIR)/README.md"

# Twenty minutes on two cores; then a page and plots of what was measured.
RESULTS := benchmarks/results
bench-quick: RESULTS := benchmarks/results/quick
bench-quick: QUICK := --quick
bench bench-quick: $(VENV)-bench/bench
	$(VENV)-bench/bin/python benchmarks/run_all.py $(QUICK)
	$(VENV)-bench/bin/python benchmarks/report.py $(RESULTS) $(RESULTS)/performance

# The site, in site/; `make gallery` runs the examples for its pages anew.
# `make docs-check` looks at every page in headless Chromium.
docs: $(VENV)-docs/docs
	KERAS_BACKEND=jax $(VENV)-docs/bin/sphinx-build -q -W --keep-going docs site

docs-check: docs
	$(VENV)-docs/bin/python -m pytest docs/checks $(PYTEST_ARGS)

gallery: $(VENV)/test
	KERAS_BACKEND=$(BACKEND) $(BIN)/python docs/make_gallery.py

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-middle $(VENV)-newest $(VENV)-bench \
	    $(VENV)-wheel $(VENV)-docs dist out site

# Older ones know no dependency groups.
PIP := "pip>=25.1"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/pip: $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade $(PIP)
	@touch $@

# The tested torch first, in its CPU build where the machine offers one.
TORCH := torch==2.13.0

$(VENV)/quickstart-%: $(VENV)/pip pyproject.toml
	$(BIN)/python -m pip install --quiet $(if $(filter torch,$*),$(TORCH)) \
	    -e ".[$*]" --group quickstart
	@touch $@

$(VENV)/test: $(VENV)/pip pyproject.toml
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e . --group test
	@touch $@

# Without its newer emitters and LLVM's passes XLA compiles in a quarter of the
# time, to slower code. One that does not know a flag ends the process.
# `make test-compat` goes without.
QUICK_XLA := --xla_cpu_use_fusion_emitters=false \
	--xla_backend_optimization_level=0
TRIAL := "from numpy import ones; from kormos import backend; \
	backend.compile(lambda x: x + x)(ones(2))"

$(VENV)/xla-flags: $(VENV)/test
	@: > $@
	for backend in jax tensorflow; do \
	    KERAS_BACKEND=$$backend XLA_FLAGS="$(QUICK_XLA)" \
	    $(BIN)/python -c $(TRIAL) || exit 0; \
	done 2> /dev/null && echo $(QUICK_XLA) > $@

$(VENV)-docs/docs: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade $(PIP)
	$(@D)/bin/python -m pip install --quiet -e ".[jax]" --group docs
	@touch $@

$(VENV)/package: $(VENV)/pip pyproject.toml
	$(BIN)/python -m pip install --quiet --group package
	@touch $@

$(VENV)-oldest/test: pyproject.toml oldest.txt
	$(PYTHON_OLDEST) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade $(PIP)
	$(@D)/bin/python -m pip install --quiet -c oldest.txt $(TORCH)
	$(@D)/bin/python -m pip install --quiet -c oldest.txt -e . --group test
	@touch $@

$(VENV)-bench/bench: pyproject.toml benchmarks/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade $(PIP)
	$(@D)/bin/python -m pip install --quiet $(TORCH)
	$(@D)/bin/python -m pip install --quiet -e ".[tensorflow,jax,torch]" \
	    -r benchmarks/requirements.txt
	@touch $@

$(VENV)-middle/test $(VENV)-newest/test: $(VENV)-%/test: pyproject.toml
	$(if $(filter newest,$*),$(PYTHON_NEWEST),$(PYTHON_MIDDLE)) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade $(PIP)
	$(@D)/bin/python -m pip install --quiet --upgrade \
	    -e ".[tensorflow,jax]" --group test-tools
	@touch $@
