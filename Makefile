# Two commands for a newcomer: `make demo` and `make test`. Every target makes $(VENV) and installs by itself when
# pyproject.toml or the file of exact versions is newer than the last installation; otherwise it starts at once.
# GNU make and /bin/sh; PYTHON, VENV, CONSTRAINTS and everything of `make demo` can be given behind the target's name.

PYTHON ?= python3
VENV ?= .venv
STAMP = $(VENV)/.installed
PEERS = $(VENV)/.peers_installed
DOCS = $(VENV)/.docs_installed
BROWSER = $(VENV)/.browser_installed
DEV = $(VENV)/.dev_installed

# Exact versions: newer numpy, pandas, anndata and scanpy need Python 3.12, so that 3.11 has a file of its own.
constraints_of = $(shell "$(1)" -c 'import sys; print("constraints.txt" if sys.version_info < (3, 12) else "constraints-3.12.txt")' 2>/dev/null)
CONSTRAINTS := $(or $(call constraints_of,$(VENV)/bin/python),$(call constraints_of,$(PYTHON)),constraints.txt)

# what `make demo` hands to `sims-kit report`; empty means its default
REFERENCE = pbmc68k
LABEL =
QUERY =
LABELFILE =
GROUPS =
GENES =
ORIENTATION =
LAYER =
TEMPLATE =
OUT = results/demo
export REFERENCE LABEL QUERY LABELFILE GROUPS GENES ORIENTATION LAYER TEMPLATE OUT

# the kernel of every notebook is this environment's Python, whatever kernels the user has elsewhere
# and threads that wait for each other sleep: spinning ones take minutes where other work runs beside the notebooks
RUN = JUPYTER_PATH= JUPYTER_PREFER_ENV_PATH=1 OMP_WAIT_POLICY=PASSIVE "$(VENV)/bin/python"

.NOTPARALLEL:
.PHONY: help demo test test-all release attack peers lab notebooks learner docs book browser measure figure catalogue models lint format constraints clean check-demo check-python

help:  ## this list
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):.*  ## /\1|/p' Makefile | while IFS='|' read -r name text; do printf '  %-12s %s\n' "$$name" "$$text"; done
	@echo "Your own cells:  make demo REFERENCE=ref.h5ad LABEL=cell_type QUERY=query.h5ad OUT=folder"

demo: check-demo $(STAMP)  ## annotate real cells: train, annotate, explain; leaves OUT (results/demo)
	@$(RUN) -m sims_kit report "$$REFERENCE" --out "$$OUT" $${LABEL:+--label "$$LABEL"} $${QUERY:+--query "$$QUERY"} \
	  $${LABELFILE:+--labelfile "$$LABELFILE"} $${GROUPS:+--groups "$$GROUPS"} $${GENES:+--genes "$$GENES"} \
	  $${ORIENTATION:+--orientation "$$ORIENTATION"} $${LAYER:+--layer "$$LAYER"} \
	  $${TEMPLATE:+--template "$$TEMPLATE"}

# Inputs that are wrong should be named before an installation of minutes, not after it.
check-demo: check-python
	@for file in "$$REFERENCE" "$$QUERY"; do case $$file in \
	  *[./]*) [ -e "$$file" ] || { echo "There is no file $$file (looked from $$PWD). Give the path of a file, or a name" \
	    "of data_registry.yaml." >&2; exit 2; };; esac; done
	@[ -z "$$LABELFILE" ] || [ -e "$$LABELFILE" ] || { echo "There is no label file $$LABELFILE (looked from $$PWD)." >&2; exit 2; }
	@case $$REFERENCE in *[./]*) [ -n "$$LABEL" ] || { echo "REFERENCE=$$REFERENCE needs LABEL=the column that holds its" \
	  "cell types, as in: make demo REFERENCE=ref.h5ad LABEL=cell_type QUERY=query.h5ad" >&2; exit 2; };; esac
	@case $$ORIENTATION in ''|cells_by_genes|genes_by_cells) ;; *) echo "ORIENTATION=$$ORIENTATION is neither" \
	  "cells_by_genes nor genes_by_cells." >&2; exit 2;; esac

# Unit tests that take more than a second or start processes of their own: in `make test-all` only, as those marked slow.
LONG = test_demo or test_devices or test_dataset or hostile_files or four_files or test_length or other_settings_are or \
  cover_the_truth or chances_are or gate_fails or paths_in_and or not_saved or passes_parameters \
  or new_order_every or examples_run or grid_search or hidden_genes or no_name_covers or \
  transcriptome_width or every_epoch_can or each_method_learns or test_editions or over_clusters or threads_change or \
  every_anndata or sum_to_what or unseen_types or older_anndata or every_kind or any_matrix or test_resume or torchs_global \
  or precisions_and or incomplete_lesson or live_training or progress_without or test_colours or early_stopping or \
  genes_that_are_read or next_stretches or error_rate_holds or are_adjusted or same_seed or equal_scanpy or starts_from_it
JOBS = 2

# JOBS at a time, each on one thread and in about a gigabyte: quick unit tests, and the fast version of each lesson.
test: $(STAMP)  ## in a few minutes (JOBS=4: four at a time): quick unit tests, and every lesson as learners see it
	@mkdir -p build/test; export SIMS_KIT_FAST=1 OMP_NUM_THREADS=1; printf '%s\n' tests learner/*.ipynb | xargs -n 1 -P $(JOBS) sh -c \
	  'log=build/test/$${0##*/}.log; $(RUN) -m pytest -q -p no:cacheprovider -m "not slow" -k "not ($(LONG))" \
	  --nbval-lax --nbval-current-env "$$0" \
	  > $$log 2>&1 && echo "$$0: $$(tail -n 1 $$log)" || { cat $$log; exit 1; }' \
	  && echo "All passed." || { echo "Some tests failed; their messages are above, and in build/test." >&2; exit 1; }

test-all: $(STAMP)  ## everything: all unit tests, then every notebook in both editions, side by side
	@status=0; $(RUN) -m pytest tests || status=1; mkdir -p build; export SIMS_KIT_FAST=1 OMP_NUM_THREADS=1; \
	$(RUN) -m pytest -p no:cacheprovider --nbval-lax --nbval-current-env learner > build/learner.log 2>&1 & learner=$$!; \
	$(RUN) -m pytest --nbval-lax --nbval-current-env notebooks || status=1; \
	wait $$learner || status=1; cat build/learner.log; exit $$status

attack: $(STAMP)  ## the long version of the tests of hostile and damaged files and of faults, with counts
	@SIMS_KIT_TRIALS=200 $(RUN) -m pytest tests/security tests/faults/faults.py

peers: $(PEERS)  ## install the benchmark's other methods too (CellTypist, scANVI, LightGBM), so that their tests run

lab: $(STAMP)  ## JupyterLab on the lessons, in the learner's edition
	@$(RUN) -m jupyterlab --notebook-dir . --LabApp.default_url=/lab/tree/learner/$(notdir $(firstword $(wildcard learner/*.ipynb)))

notebooks: $(STAMP)  ## run every notebook and save its outputs in place, tidied
	@$(RUN) tools/run_notebooks.py notebooks/*.ipynb

learner: $(STAMP)  ## the learner's edition of the lessons, without outputs and solutions: learner/
	@$(RUN) tools/write_learner.py learner

docs: $(DOCS)  ## guides, lessons, API and results as a static site: dist/docs/index.html
	@$(RUN) -m sphinx -q -W --keep-going -E -c docs -d build/doctrees . dist/docs
	@cp dist/docs/README.html dist/docs/index.html

book: docs  # its earlier name

browser: $(BROWSER) $(DOCS)  ## tests in a real browser; needs Chromium
	@$(RUN) -m pytest tests/test_browser.py

measure: $(STAMP)  ## CPU time and memory of every lesson: docs/notebooks.md
	@$(RUN) tools/measure_notebooks.py

figure: $(STAMP)  ## draw the UMAP of README.md anew, by running its quickstart
	@$(RUN) docs/pictures/before_after.py

catalogue: $(STAMP)  ## write docs/datasets.md from data_registry.yaml
	@$(RUN) tools/write_catalogue.py

models: $(STAMP)  ## train the ready models and write docs/models.md
	@OMP_NUM_THREADS=1 $(RUN) tools/train_models.py

lint: $(STAMP)  ## ruff: rules and format
	@$(RUN) -m ruff check . && $(RUN) -m ruff format --check .

format: $(STAMP)  ## ruff: mend what can be mended
	@$(RUN) -m ruff check --fix . ; $(RUN) -m ruff format .

release: $(DEV)  ## build and check dist/release, tag the version, and print the command that publishes it
	@rm -rf dist/release && $(RUN) -m build --outdir dist/release . && $(RUN) -m twine check --strict dist/release/*
	@version=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml); grep -q "^## \[$$version\]" CHANGELOG.md \
	  || { echo "CHANGELOG.md has no section for $$version." >&2; exit 1; }; \
	[ -z "$$(git status --porcelain)" ] || { echo "Not tagged: commit everything first." >&2; exit 1; }; \
	git tag --points-at HEAD | grep -qx "v$$version" \
	  || git tag --annotate "v$$version" --message "sims_kit $$version" || exit 1; \
	echo "git push origin v$$version publishes it."

constraints: CONSTRAINTS = $(call constraints_of,$(PYTHON))
constraints: check-python  ## resolve afresh (a few minutes) and write the constraints file of PYTHON
	@rm -rf build/resolve && "$(PYTHON)" -m venv build/resolve
	build/resolve/bin/pip install "$$(sed -n '/^torch==/p' $(CONSTRAINTS))" --editable '.[test,peers,docs,browser]'
	@{ sed -n '/^#/p' $(CONSTRAINTS); build/resolve/bin/pip freeze --exclude-editable \
	  | sed -e 's/+[a-z0-9.]*$$//' -e '/^nvidia-/d' -e '/^cuda-/d' -e '/^triton==/d'; } > build/constraints.txt
	@mv build/constraints.txt $(CONSTRAINTS) && rm -rf build/resolve

clean:  ## remove what the other targets made, but not $(VENV)
	rm -rf results notebooks/results build dist lightning_logs notebooks/lightning_logs .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

check-python:
	@command -v "$(PYTHON)" >/dev/null || { echo "$(PYTHON) is not here. Install Python 3.11 or newer, or name one:" \
	  "make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.exit(sys.version_info < (3, 11) and "$(PYTHON) is \
	Python " + v + "; sims_kit needs 3.11 or newer. Name another one: make PYTHON=/path/to/python3.11")'

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(MAKE) --no-print-directory check-python
	@[ -x "$(VENV)/bin/python" ] || "$(PYTHON)" -m venv "$(VENV)"
	"$(VENV)/bin/python" -m pip install --constraint $(CONSTRAINTS) --editable '.[test]'
	@touch "$(STAMP)"

$(PEERS): $(STAMP)
	"$(VENV)/bin/python" -m pip install --constraint $(CONSTRAINTS) --editable '.[peers]'
	@touch "$(PEERS)"

$(DOCS): $(STAMP)
	"$(VENV)/bin/python" -m pip install --constraint $(CONSTRAINTS) --editable '.[docs]'
	@touch "$(DOCS)"

$(BROWSER): $(STAMP)
	"$(VENV)/bin/python" -m pip install --constraint $(CONSTRAINTS) --editable '.[browser]'
	@touch "$(BROWSER)"

$(DEV): $(STAMP)
	"$(VENV)/bin/python" -m pip install --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch "$(DEV)"
