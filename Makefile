# Set-up is pinned in envs/ and goes to .venv, once: each step leaves a stamp
# there, and is done again only when the pins it comes from change.

PYTHON ?= python3
# TORCH=2.11: with that torch, in an environment of its own (a CUDA build: some GB).
TORCH ?=
VENV := .venv$(if $(TORCH),-torch-$(TORCH))
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Byte code is kept: hundreds of processes start here, and each would compile the repository anew.
unexport PYTHONDONTWRITEBYTECODE

# It ends with this make, even where that is killed. Status 3: cases failed, as their records say.
RUN := ATTENTION_ENDS_WITH=$$PPID python -m experiments run

# -qq: errors only; the lines below tell what goes on.
PIP := $(BIN)/python -m pip --no-input --disable-pip-version-check -qq install --progress-bar off --no-compile
# Every pin and its hash is listed, so pip need resolve nothing, and what has to
# be built is built with the pinned setuptools.
HASHED := --no-deps --require-hashes --no-build-isolation
# torch alone has no hash, and a CUDA build brings packages of its own.
PIPFLAGS_torch := --prefer-binary

BASE := $(addprefix $(VENV)/.stamp-,run torch pipeline)

.PHONY: help reproduce round test kills scale lint paper report lab peers cluster kubernetes clean lock
.NOTPARALLEL:

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

reproduce: $(VENV)/.ready-reproduce ## the findings in ten minutes: measure, analyse, typeset; TIER=full takes all cases
	$(RUN) --all --tier $(or $(TIER),quick) --rounds 2 || test $$? -eq 3
	snakemake $(if $(TIER),--config tier=$(TIER)) $(ARGS)

round: $(VENV)/.ready-reproduce $(VENV)/.ready-peers ## one more round of all measurements: let nothing else run beside it
	$(RUN) --all --tier full $(ARGS)

paper: $(VENV)/.ready-reproduce ## analysis, figures and paper from the published results
	snakemake --config source=published $(ARGS)

report: paper ## build/report.html: all of these in one file, with captions, to read offline
	snakemake --config source=published --report build/report.html

test: $(VENV)/.ready-test ## the test suite; ARGS='-k name' goes to pytest, TORCH=2.11 takes that torch
	pytest $(ARGS)

kills: $(VENV)/.ready-test ## fifty runs are killed at random moments: what is lost? ARGS='--count 9'
	python -m tests.pipeline.kills $(ARGS)

scale: $(VENV)/.ready-test ## 100 to 10,000 cases planned, resumed and analysed: build/scale/; ARGS='--counts 100 1000'
	python -m tests.pipeline.scale $(ARGS)

lint: $(VENV)/.ready-test ## style of the Python code and of the workflow
	ruff check
	ruff format --check
	snakefmt --check Snakefile rules
	snakemake --lint

lab: $(VENV)/.ready-lab ## the notebooks, in JupyterLab
	jupyter lab $(ARGS) analysis/notebooks

peers: $(VENV)/.ready-peers ## set up other people's ring attention, to compare with, and Hugging Face's models

cluster: $(VENV)/.ready-cluster ## set up what jobs on a SLURM cluster need (docs/cluster.md)

kubernetes: $(VENV)/.ready-kubernetes ## set up what jobs on a Kubernetes cluster need (docs/kubernetes.md)

clean: ## remove build/ and .snakemake/; results/ and .venv stay
	rm -rf build .snakemake

lock: $(VENV)/.stamp-python ## envs/*.in -> pins; ARGS=--upgrade takes newer versions
	sh envs/lock.sh $(ARGS)

# --- set-up -----------------------------------------------------------------

$(VENV)/.ready-reproduce: $(BASE)
$(VENV)/.ready-test: $(BASE) $(VENV)/.stamp-triton $(VENV)/.stamp-dev $(VENV)/.stamp-slurm $(VENV)/.stamp-kubernetes
$(VENV)/.ready-cluster: $(BASE) $(VENV)/.stamp-slurm
$(VENV)/.ready-kubernetes: $(BASE) $(VENV)/.stamp-kubernetes
$(VENV)/.ready-lab: $(BASE) $(VENV)/.stamp-lab
$(VENV)/.ready-peers: $(BASE) $(VENV)/.stamp-peers

# Byte code on all cores at once: quicker than pip's own, and many jobs start.
# (|| true: some packages ship files for newer Pythons only.)
$(VENV)/.ready-%:
	@echo "setting up $(VENV): byte code"
	@$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true
	@touch $@

$(VENV)/.stamp-%: envs/%.txt $(VENV)/.stamp-python
	@echo "setting up $(VENV): $*$(if $(filter torch,$*), (some GB where it is a CUDA build))"
	@$(PIP) $(or $(PIPFLAGS_$*),$(HASHED)) -r $<
	@touch $@

$(VENV)/.stamp-torch: $(VENV)/.stamp-run
ifneq ($(TORCH),)
	@echo "setting up $(VENV): torch $(TORCH)"
	@$(PIP) $(PIPFLAGS_torch) 'torch==$(TORCH).*'
	@touch $@
endif

# A CUDA build of torch brings the Triton that it needs.
$(VENV)/.stamp-triton: envs/triton.txt $(VENV)/.stamp-torch
	@$(BIN)/python -c 'import triton' 2>/dev/null || { echo "setting up $(VENV): triton"; $(PIP) --no-deps -r $<; }
	@touch $@

$(VENV)/.stamp-python:
	@command -v $(PYTHON) >/dev/null || { echo "no '$(PYTHON)' here; say which: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and "this is Python %s, and 3.11 or newer is needed; say which: make PYTHON=/path/to/python3.11" % v)'
	@echo "setting up $(VENV): $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@
