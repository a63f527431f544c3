# The first use makes .venv and installs the pinned packages; later uses find them there.
# Without make (Windows): README.md lists the same commands as `python -m ...`.
PYTHON ?= python3
OUT ?= runs/synthetic
SEEDS ?=
PRESET ?=

BIN := .venv/bin/python
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help reproduce test lab figures checkpoints bench lint

help: ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile
	@echo "Variables: PYTHON=$(PYTHON) OUT=$(OUT) SEEDS=$(SEEDS) PRESET=$(PRESET) (quick, small, full)"

reproduce: $(STAMP) ## train, attack and compare all defenses on the embedded data; resumes what was begun
	$(BIN) -m aart_lib reproduce --data synthetic --out "$(OUT)" --resume \
	    $(if $(SEEDS),--seeds "$(SEEDS)") $(if $(PRESET),--preset "$(PRESET)")

test: $(STAMP) ## all tests, the notebooks too
	$(BIN) -m pytest

lab: $(STAMP) ## open the notebooks in JupyterLab
	$(BIN) -m jupyterlab --notebook-dir=notebooks

figures: $(STAMP) ## draw the committed figures anew from the committed results
	$(BIN) -m aart_lib figures

checkpoints: $(STAMP) ## train the small checkpoints of the notebooks anew
	$(BIN) -m aart_lib checkpoints

bench: $(STAMP) ## time an A-ART step against a standard step
	$(BIN) -m pytest tests/benchmarks -s

lint: $(STAMP) ## style of code and notebooks
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .

# The path is relative, so that a folder name with spaces never reaches make.
$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 5) and "requirements.txt pins versions for Python 3.11.5 or newer; name one with PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN) -m pip install -r requirements.txt
	$(BIN) -m pip install --no-deps -e .
	@touch $(STAMP)
