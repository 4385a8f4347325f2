# Two commands do everything on a fresh machine: `make run` and `make test`.

PYTHON ?= python3
VENV   ?= .venv
# Named exactly: a range would take the newest build and gigabytes of CUDA packages on a machine without a GPU.
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: run test test-slow soak traps instrument check format clean

run: $(VENV)/.installed                ## set up and answer the default question
	$(BIN)/ablate run sweep=compress_ratios $(ARGS)

test: $(VENV)/.test-installed check    ## set up and pass the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

test-slow: $(VENV)/.test-installed     ## the tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(ARGS)

soak: $(VENV)/.test-installed          ## a sweep whose workers are killed again and again ends in the same numbers
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak.py $(ARGS)

traps: $(VENV)/.test-installed         ## every known mistake, put into the code, is noticed by the tests
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutations/run.py $(ARGS)

instrument: $(VENV)/.test-installed    ## how often verdicts are wrong, what they detect and cost: a table by simulation
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests $(BIN)/python tests/instrument.py $(ARGS)

check: $(VENV)/.test-installed         ## style, types and import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/.test-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	$(PIP) "$(TORCH)"
	$(PIP) -e .
	@touch $@

$(VENV)/.test-installed: $(VENV)/.installed
	$(PIP) -e ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
