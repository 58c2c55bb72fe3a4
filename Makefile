# fakedet: common jobs. `make help` explains them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
ARGS   ?=

# The development corpus; tests that need it skip with a reason where it is absent.
FAKEDET_CORPUS ?= $(wildcard ../shared/data)
export FAKEDET_CORPUS
# The corpus of many families of generators.
FAKEDET_WIDE ?= $(wildcard $(FAKEDET_CORPUS)/wide)
export FAKEDET_WIDE
export NO_ALBUMENTATIONS_UPDATE = 1

.DEFAULT_GOAL := help
.PHONY: help setup demo detector study test test-slow lint bench train train-ddp submit sweep sweep-slurm resume compare evaluate lock pins clean

# Ends with a line of its own where a target's variable is not given.
need = $(if $(value $(1)),,$(error $(1)= is not given; `make help` shows an example))

# key=value in the shell's quotes: a path may hold any sign, a dollar sign too.
typed = '$(1)=$(subst ','\'',$(value $(2)))'
unexport RUN RUNS CKPT

help:  ## Show these targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# Everything below needs the environment; it is rebuilt when the pins or the project's metadata change.
setup: $(STAMP)  ## Create .venv with the pinned packages and fakedet itself.

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"fakedet needs Python 3.11 or newer; {sys.executable} is {v.major}.{v.minor}. Name another with: make PYTHON=python3.12 ...")'
	@echo "Setting up $(VENV) from requirements.lock (once; about a minute) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@command -v uv >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet uv
	@PATH="$(CURDIR)/$(BIN):$$PATH" uv pip install --quiet --python $(BIN)/python -r requirements.lock
	@PATH="$(CURDIR)/$(BIN):$$PATH" uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)  ## Train and compare all methods on the embedded demo data; writes runs/studies/demo/report.html.
	@$(BIN)/fakedet study study=demo $(ARGS)

study: $(STAMP)  ## Run conf/study/NAME.yaml, or go on with it: make study NAME=seeds JOBS=2; writes runs/studies/NAME.
	$(call need,NAME)
	@$(BIN)/fakedet study study=$(NAME) $(if $(JOBS),hydra.launcher.n_jobs=$(JOBS)) $(ARGS)

# SCORE=no leaves the test split alone, while the recipe is tried.
DETECTOR := experiments/wide/detector
MADE := runs/detector

detector: $(STAMP)  ## Train the detector that fakedet ships (conf/experiment/wide/detector.yaml); weights and card in experiments/wide.
	@$(BIN)/fakedet study --config-dir experiments/wide study=detector
	@$(BIN)/fakedet train experiment=wide/detector output_dir=$(MADE)/train overwrite=true operating_point.predictions=$(MADE)/folds/leave_out $(ARGS)
	@$(BIN)/fakedet export checkpoint=$(MADE)/train/checkpoints/best.ckpt output=$(DETECTOR).safetensors
	@rm -rf $(DETECTOR).safetensors.json $(MADE)/test $(MADE)/native_*
ifneq ($(SCORE),no)
	@$(BIN)/fakedet evaluate checkpoint=wide data=wide output_dir=$(MADE)/test
endif
	@for share in 5 10 20; do \
		$(BIN)/fakedet predict source=$(FAKEDET_CORPUS)/native output=$(MADE)/native_$$share.csv false_alarm=$${share}e-2 miss=$${share}e-2 || exit; \
	done
	@$(BIN)/python experiments/wide/card.py $(DETECTOR).safetensors --run $(MADE)/train --test $(MADE)/test --study runs/studies/wide/leave_family_out/summary.json --method bce --native $(MADE)/native_5.csv $(MADE)/native_10.csv $(MADE)/native_20.csv

test: lint  ## Lint, check types and run the tests but the long ones.
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

test-slow: $(STAMP)  ## Run the long tests: killed runs, several processes, clusters, a browser, an installed wheel.
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m slow $(ARGS)

lint: $(STAMP)  ## Ruff and mypy.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(STAMP)  ## Time everything against what it is compared with and write docs/performance.md (a quarter of an hour).
	@$(BIN)/python -m benchmarks $(ARGS)

# Names the folders of submitted jobs and sweeps.
NOW := $(shell date +%Y-%m-%d_%H-%M-%S)
EXP ?= ntf
DEVICES ?= 2
NODES ?= 1
GPUS ?= 1
TRAINER ?= ddp

train: $(STAMP)  ## Train one experiment: make train EXP=ntf ARGS="seed=1 data=manifest data.manifest=...".
	@$(BIN)/fakedet train experiment=$(EXP) $(ARGS)

train-ddp: $(STAMP)  ## The same on several GPUs of this machine: make train-ddp EXP=ntf DEVICES=4.
	@$(BIN)/fakedet train experiment=$(EXP) trainer=$(TRAINER) trainer.devices=$(DEVICES) $(ARGS)

submit: $(STAMP)  ## The same as a SLURM job, on one node or several: make submit EXP=ntf NODES=2 GPUS=4.
	@$(BIN)/fakedet train -m hydra/launcher=slurm experiment=$(EXP) trainer=$(TRAINER) trainer.num_nodes=$(NODES) trainer.devices=$(GPUS) hydra.launcher.nodes=$(NODES) hydra.launcher.tasks_per_node=$(GPUS) hydra.launcher.gpus_per_node=$(GPUS) hydra.sweep.dir=runs/$(EXP)/$(NOW) hydra.sweep.subdir=run $(ARGS)

sweep: $(STAMP)  ## The same in a new folder, several jobs at a time on this machine: make sweep SWEEP=seeds JOBS=2.
	$(call need,SWEEP)
	@$(BIN)/fakedet study study=$(SWEEP) $(if $(JOBS),hydra.launcher.n_jobs=$(JOBS)) hydra.sweep.dir=runs/sweeps/$(SWEEP)-$(NOW) $(ARGS)

sweep-slurm: $(STAMP)  ## The same on SLURM, one job of an array for each run: make sweep-slurm SWEEP=seeds GPUS=1.
	$(call need,SWEEP)
	@$(BIN)/fakedet study study=$(SWEEP) hydra/launcher=slurm hydra.launcher.gpus_per_node=$(GPUS) hydra.sweep.dir=runs/sweeps/$(SWEEP)-$(NOW) $(ARGS)

resume: $(STAMP)  ## Go on with a run that was stopped: make resume RUN=runs/ntf/2026-01-01_12-00-00.
	$(call need,RUN)
	@$(BIN)/fakedet resume $(call typed,run,RUN) $(ARGS)

compare: $(STAMP)  ## One table of all runs below a folder: make compare RUNS=runs/studies/demo.
	$(call need,RUNS)
	@$(BIN)/fakedet compare $(call typed,runs,RUNS) $(ARGS)

evaluate: $(STAMP)  ## Evaluate a checkpoint: make evaluate CKPT=path ARGS="data=manifest ...".
	$(call need,CKPT)
	@$(BIN)/fakedet evaluate $(call typed,checkpoint,CKPT) $(ARGS)

lock: $(STAMP)  ## Resolve the pins anew (maintainers).
	@PATH="$(CURDIR)/$(BIN):$$PATH" uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --upgrade --quiet -o requirements.lock

pins: $(STAMP)  ## Look the pinned packages up in PyPI's database of known vulnerabilities (needs a network).
	@PATH="$(CURDIR)/$(BIN):$$PATH" uv tool run pip-audit --requirement requirements.lock --no-deps --disable-pip --format json --output - 2>/dev/null | $(BIN)/python .ci/pins.py

clean:  ## Remove the environment and caches; runs/ stays.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
