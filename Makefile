# Two commands do everything: `make reproduce` and `make test`. Both make what they need first. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help

STUDY        ?= studies/reproduce.yaml
# as many as there are cores, up to four: each needs a gigabyte
TEST_WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ "$$n" -lt 4 ] && echo $$n || echo 4)
EXECUTE      ?= 1
PYTHON       ?=

PY        := .venv/bin/python
VENV_DONE := .venv/.complete
NODE_DONE := node_modules/.package-lock.json
KATEX_DONE := tools/katex/node_modules/.package-lock.json
# The real Quarto where there is one, else the stand-in (last on the path).
WITH_QUARTO := PATH="$$PWD/.venv/bin:$$PATH:$$PWD/tools/bin"

export OMP_WAIT_POLICY := PASSIVE
# glibc keeps large buffers: giving them back after every layer costs up to three quarters of a network's time on a CPU.
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TRIM_THRESHOLD_ := 8589934592
export MALLOC_TOP_PAD_ := 67108864
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1
export TRANSFORMERS_VERBOSITY := error
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUNBUFFERED := 1

# An environment that was made elsewhere (a moved or copied clone) is made anew. The shell compares: a path may have spaces, quotes, dollars.
ifneq ($(shell [ "$$(cat $(VENV_DONE) 2>/dev/null)" = "$$(pwd -P)" ] || echo elsewhere),)
.PHONY: $(VENV_DONE)
endif
# The scripts of .venv/bin carry the path of their Python in the first line, where not every letter is allowed: call what they call.
NBDEV = $(PY) -c 'from nbdev.doclinks import nbdev_export as export; from nbdev.clean import nbdev_clean as clean; $(1)()'
export STUDY PYTHON FILE

.PHONY: help reproduce audit test benchmark docs results readme lab mini check clean-notebooks lock venv images clean

help:  ## this list
	@echo 'openworld_forget: what does customizing a generative image model break, and how do you stop it?'; echo
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 24
	@echo; echo 'Settings: STUDY=$(STUDY)  TEST_WORKERS=$(TEST_WORKERS)  EXECUTE=$(EXECUTE)  PYTHON=/path/to/python3.11'

reproduce: $(VENV_DONE) $(NODE_DONE) $(KATEX_DONE)  ## run the study (STUDY=file.yaml) and write its report to outputs/
	@$(PY) -m openworld_forget.study "$$STUDY"

audit: $(VENV_DONE) $(NODE_DONE) $(KATEX_DONE)  ## what did this file break? (FILE=my.safetensors; ARGS='--base sd15 ...'; without FILE: an example)
	@$(PY) -m openworld_forget.audit $(if $(FILE),"$$FILE") $(ARGS)

test: $(VENV_DONE) $(NODE_DONE)  ## run every notebook and every test
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(TEST_WORKERS) $(ARGS)

benchmark: $(VENV_DONE) $(NODE_DONE)  ## what a training step costs, as ratios (outputs/benchmarks/)
	@mkdir -p outputs/benchmarks && $(PY) -m papermill nbs/reports/speed.ipynb outputs/benchmarks/speed.ipynb -k python3 --cwd . --log-output --no-progress-bar

docs: $(VENV_DONE) $(NODE_DONE) $(KATEX_DONE)  ## build the documentation site, _docs/index.html (runs the notebooks that changed; EXECUTE=0: none)
	@$(WITH_QUARTO) $(PY) tools/build_docs.py $(if $(filter 0,$(EXECUTE)),--no-execute)

results: $(VENV_DONE)  ## take the result that the README shows from outputs/reproduce
	@$(PY) tools/results.py

readme: $(VENV_DONE)  ## write README.md from nbs/index.ipynb
	@$(PY) tools/build_docs.py --readme-only

lab: $(VENV_DONE) $(NODE_DONE)  ## open the notebooks in JupyterLab
	@$(PY) -m jupyter lab --ServerApp.root_dir="$$PWD" --LabApp.default_url=/lab/tree/nbs $(ARGS)

mini: $(VENV_DONE) $(NODE_DONE)  ## train the mini world again (hours; resumes where it was stopped)
	@set -e; for m in vae clip denoiser card velocity; do echo "== mini: $$m"; $(PY) -c "from openworld_forget.mini.$$m import main; main()"; done

clean-notebooks: $(VENV_DONE)  ## strip what a run leaves in the notebooks
	@$(call NBDEV,clean)

check: $(VENV_DONE)  ## export and clean the notebooks; fail if that changes a checked-in file
	@$(call NBDEV,export) && $(call NBDEV,clean) && git diff --exit-code && echo 'Notebooks are exported and clean.'

lock: $(VENV_DONE)  ## resolve requirements.in into requirements.txt
	@$(PY) tools/lock.py

venv: $(VENV_DONE)  ## make the Python environment, .venv
images: $(NODE_DONE)  ## fetch the drawings, node_modules

clean:  ## remove what was made: environment, drawings, site, caches (outputs/ stays)
	@rm -rf .venv node_modules tools/katex/node_modules _docs _proc .pytest_cache .ruff_cache .hypothesis *.egg-info

# ---------------------------------------------------------------------------------------------------------------------
$(VENV_DONE): requirements.txt settings.ini setup.py
	@tools/make_venv.sh "$$PYTHON"

$(NODE_DONE): package.json package-lock.json | $(if $(shell command -v npm),,$(VENV_DONE))
	@tools/make_images.sh

$(KATEX_DONE): tools/katex/package.json tools/katex/package-lock.json | $(if $(shell command -v npm),,$(VENV_DONE))
	@tools/make_images.sh tools/katex
