# A fresh machine with Python and make: `make quickstart`, `make test`.
PYTHON ?= python3
BACKEND ?= jax
BACKENDS ?= jax tensorflow torch
VENV := .venv
BIN := $(VENV)/bin

export TF_CPP_MIN_LOG_LEVEL ?= 3
export TF_ENABLE_ONEDNN_OPTS ?= 0
# Compiling is most of what the tests do on JAX, and many compile the same.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/$(VENV)/jax-cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0

.PHONY: quickstart test $(addprefix test-,jax tensorflow torch) lint format bench clean

quickstart: $(VENV)/quickstart-$(BACKEND)
	KERAS_BACKEND=$(BACKEND) $(BIN)/python examples/quickstart.py

# Tests run two at a time, each on one thread: that is what two cores hold.
test: lint $(addprefix test-,$(BACKENDS))

test-jax test-tensorflow test-torch: test-%: $(VENV)/test
	KERAS_BACKEND=$* OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

lint: $(VENV)/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	KERAS_BACKEND=jax $(BIN)/mypy

format: $(VENV)/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/test
	KERAS_BACKEND=jax $(BIN)/python benchmarks/overhead.py

clean:
	rm -rf $(VENV) out

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# The tested torch first, in its CPU build where the machine offers one.
TORCH := torch==2.13.0

$(VENV)/quickstart-%: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet $(if $(filter torch,$*),$(TORCH)) -e ".[quickstart,$*]"
	@touch $@

$(VENV)/test: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e ".[test]"
	@touch $@
