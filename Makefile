# make reproduce    set everything up, run the default preset, write results/embedded/report.zip
# make test         set everything up, check everything
# `make help` lists the rest. Another preset: make reproduce PRESET=full (smoke, full, paper or paper-one). Another interpreter: make setup PYTHON=python3.12

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
PRESET ?= embedded
CORES ?= all
WORKERS ?= 2 # test files at a time
RESULTS = results/$(PRESET)
PRESETS = $(if $(filter paper-one,$(PRESET)),workflow/presets/paper.yaml workflow/overlays/paper-one.yaml,workflow/presets/$(PRESET).yaml)
OVERLAY = $(if $(filter embedded,$(PRESET)),,--configfile $(PRESETS))

VENV = .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.ready
RUN = $(BIN)/python -m tuneleak
SNAKEMAKE = $(BIN)/snakemake $(OVERLAY) --cores $(CORES) --rerun-incomplete --show-failed-logs
TEX = texlive-latex-recommended texlive-fonts-recommended latexmk
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup tex reproduce report smoke resources promote verify record keep take redraw crate test test-gpu bench ruff lint schema artifact pin-envs unlock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) tex ## make .venv with everything installed, and TeX where this user may install it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make setup PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	@touch $@

tex:
	@missing=; for name in latexmk pdflatex; do command -v $$name > /dev/null || missing=1; done; \
	for name in booktabs.sty natbib.sty hyperref.sty; do kpsewhich $$name > /dev/null 2>&1 || missing=1; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends $(TEX) > /dev/null; \
	else echo "The paper needs LaTeX, which only an administrator can install here: sudo apt-get install $(TEX)"; exit 1; fi

ifneq ($(PRESET),embedded)
ifneq ($(wildcard $(PRESETS)),$(PRESETS))
$(error there is no preset $(PRESET): known are $(basename $(notdir $(wildcard workflow/presets/*.yaml))) embedded paper-one)
endif
endif

reproduce: setup unlock ## run a preset to the paper and its report; a second call finds nothing to do
	$(SNAKEMAKE)
	@$(MAKE) --no-print-directory report PRESET=$(PRESET)

report: setup ## pack figures, claims and provenance of a finished run into report.zip
	@if [ $(RESULTS)/report.zip -nt $(RESULTS)/paper.pdf ]; then echo "$(RESULTS)/report.zip is up to date"; else \
	  $(SNAKEMAKE) --report $(RESULTS)/report.zip && echo "$(RESULTS)/report.zip"; fi

smoke: ## the whole study with tiny settings, in minutes
	@$(MAKE) --no-print-directory reproduce PRESET=smoke

resources: setup unlock ## build the shipped models anew, into results/<preset>/resources
	$(SNAKEMAKE) resources

promote: setup ## copy what `make resources` built to resources/
	$(RUN) promote --built $(RESULTS)/resources --resources resources

verify: setup ## compare a finished run with the recorded one of the same preset
	$(RUN) verify --metrics $(RESULTS)/metrics.csv --reference paper/reference/$(PRESET) --out $(RESULTS)/verify.csv

record: setup ## record a finished run under paper/reference
	$(RUN) record --metrics $(RESULTS)/metrics.csv --claims $(RESULTS)/claims.csv --benchmarks $(RESULTS)/benchmarks \
	  --results $(RESULTS) --out paper/reference/$(PRESET)

keep: setup ## pack the finished scores of a run, which may be unfinished, into paper/reference
	$(RUN) keep-shards --results $(RESULTS) --out paper/reference/$(PRESET)

take: setup unlock ## put kept scores into a results folder, so that the next run goes on from them
	$(SNAKEMAKE) --until render assemble # what they share with unfinished jobs must be older than they are
	$(RUN) take-shards --results $(RESULTS) --reference paper/reference/$(PRESET)

redraw: setup ## draw figures, tables, claims and paper of a recorded run again, into results/redrawn/<preset>; runs no model
	$(RUN) redraw --preset $(PRESET) --out results/redrawn/$(PRESET)

crate: setup ## describe a finished run: run-manifest.json and a Workflow Run RO-Crate
	$(RUN) crate --results $(RESULTS) $(if $(OVERLAY),--overlay $(PRESETS))

test: setup ruff ## formatting, lint, dry runs of all presets, unit tests, and the smoke preset end to end
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder # threads of two workers would wait for each other

test-gpu: setup ## one step of every stage at full size on a GPU; skipped where there is none
	$(BIN)/python -m pytest -m gpu -rsP # P: the memory it took

BENCHMARKS ?= paper/reference/benchmarks.csv

bench: setup ## time what claims of speed rest on, into paper/reference/benchmarks.csv; on a machine that does nothing else
	@for file in tests/benchmarks/bench_*.py; do echo "$$file"; OMP_NUM_THREADS=1 $(BIN)/python $$file --out $(BENCHMARKS); done

ruff: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint: ruff ## ruff, snakefmt, snakemake --lint, schema and README (pytest checks the last three too)
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
	$(RUN) schema

schema: setup ## write the JSON schema and the README's table of knobs
	$(RUN) schema --write

artifact: setup ## write the generated tables of ARTIFACT.md and the README's findings
	$(RUN) artifact --write

pin-envs: setup ## solve envs/*.yaml against conda-forge into *.pin.txt (needs conda and a network)
	$(BIN)/python -m pip install --quiet --editable '.[pins]' --constraint constraints.txt
	$(BIN)/snakedeploy pin-conda-envs envs/*.yaml

unlock: setup
	@$(RUN) unlock

clean: ## remove the results of a preset
	rm -rf $(RESULTS)
