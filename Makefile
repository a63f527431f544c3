# The first use makes .venv and installs the pinned packages; later uses find them there.
# Without make (Windows): README.md lists the same commands as `python -m ...`.
PYTHON ?= python3
OUT ?= runs/synthetic
SEEDS ?=
PRESET ?=

KEPT := notebooks/checkpoints
FILMED := standard,adversarial-simple,trades,a-art,adversarial-simple-uniform
STORED := standard,adversarial,trades,a-art,adversarial-uniform
HEADLINE := standard,adversarial,logit-pairing,trades,a-art,adversarial-uniform
CREDIT := a-art,trades,a-art-all-layers,a-art-all-rows,adversarial,adversarial-steps,attention-only,attention-noise,$\
    attention-shuffled,adversarial-uniform,adversarial-mean
STAIRS := standard,adversarial-relu,adversarial-simple,a-art-simple,adversarial,trades,a-art,a-art-fixed-maps
BIN := .venv/bin/python
STAMP := .venv/.installed
PEERS := .venv-peers
AUDIOSET ?=
FILMS ?=
ROWS ?=  # of the benchmarks: make bench ROWS="--only gap --only step"

# Linux gives large tensors huge pages if it is asked: steps and attacks take some 6 % less time. Others ignore it.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.DEFAULT_GOAL := help
.PHONY: help reproduce test lab figures checkpoints headline credit staircase worlds voting forms explore films page plan colab bench lint

help: ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile
	@echo "Variables: PYTHON=$(PYTHON) OUT=$(OUT) SEEDS=$(SEEDS) PRESET=$(PRESET) (quick, small, full)"

reproduce: $(STAMP) ## train, attack and compare all defenses on the synthetic data; resumes what was begun
	$(BIN) -m aart_lib reproduce --data synthetic --out "$(OUT)" --resume \
	    $(if $(SEEDS),--seeds "$(SEEDS)") $(if $(PRESET),--preset "$(PRESET)")

test: $(STAMP) ## all tests, the notebooks too
	$(BIN) -m pytest -n auto --dist loadfile

lab: $(STAMP) ## open the notebooks in JupyterLab
	$(BIN) -m jupyterlab --notebook-dir=notebooks

figures: $(STAMP) ## draw the committed figures and tables anew from the committed results and checkpoints
	$(BIN) -m aart_lib report figures/results-synthetic.json --out figures --readme figures/README.md
	$(BIN) -m aart_lib report figures/results-audioset.json --out figures --readme figures/README.md
	for name in credit short long films; do $(BIN) -m aart_lib report figures/results-$$name.json --out figures; done
	$(BIN) figures/attention.py
	$(BIN) figures/staircase.py

checkpoints: $(STAMP) ## train the notebooks' small checkpoints anew
	$(BIN) -m aart_lib reproduce --data synthetic --out runs/synthetic --resume --defenses $(STORED)
	for name in $$(echo $(STORED) | tr , ' '); do cp runs/synthetic/checkpoints/$$name-seed0.safetensors $(KEPT); done

headline: $(STAMP) ## the strong suite on five seeds, as in figures/report-synthetic.md: two hours; resumes
	$(BIN) -m aart_lib reproduce --data synthetic --suite strong --seeds 5 --defenses $(HEADLINE) --out runs/synthetic --resume

credit: $(STAMP) ## which part of A-ART earns what, as in figures/report-credit.md: twenty minutes; resumes
	$(BIN) -m aart_lib reproduce --data synthetic --defenses $(CREDIT) --out runs/credit --resume

films: $(STAMP) ## make the films of photographs and their models anew, notebooks/films: half an hour; resumes
	$(BIN) figures/photographs.py --out runs/films
	$(BIN) -m aart_lib reproduce --data films --data-dir runs/films --out runs/films-models --resume --defenses $(FILMED)
	mkdir -p notebooks/films/checkpoints
	cp runs/films/*.tfrecord runs/films/*.csv runs/films/extractor.* notebooks/films
	cp runs/films-models/checkpoints/*.safetensors notebooks/films/checkpoints
	$(BIN) -m aart_lib look notebooks/films/checkpoints/standard-seed0.safetensors runs/films/videos/test-0000.mp4 \
	    --attack pixels --out figures/film-under-attack.png

page: $(STAMP) ## write the explorer that needs no kernel anew, figures/explorer.html: ten minutes
	$(BIN) -m aart_lib page --out figures/explorer.html

staircase: $(STAMP) ## the paper's staircase taken apart, as in figures/staircase.png: hours; resumes
	$(BIN) -m aart_lib reproduce --data synthetic --suite strong --seeds 5 --epsilon 0.0416 --test-videos 1000 \
	    --defenses $(STAIRS) --out runs/staircase --resume
	cp runs/staircase/results.json figures/results-staircase.json
	$(BIN) figures/staircase.py

worlds: $(STAMP) ## the same steps where evidence is rare, and on AudioSet: make worlds AUDIOSET=DIR; hours; resumes
	$(BIN) -m aart_lib reproduce --data synthetic:rare --suite splice --seeds 3 --epsilon 0.0137 \
	    --defenses $(STAIRS),trades-uniform \
	    --out runs/rare --resume
	cp runs/rare/results.json figures/results-rare.json
	$(BIN) -m aart_lib reproduce --data audioset --data-dir "$(AUDIOSET)" --labels 50 --epsilon 0.704 --suite splice --seeds 3 \
	    --test-videos 1000 --defenses $(STAIRS) --out runs/staircase-audioset --resume
	cp runs/staircase-audioset/results.json figures/results-worlds-audioset.json
	$(BIN) figures/staircase.py

voting: $(STAMP) ## three voters against a planted frame, as in figures/worlds.md: half an hour, AUDIOSET=DIR adds it; resumes
	$(BIN) figures/voting.py --out runs/voting
	$(if $(AUDIOSET),$(BIN) figures/voting.py --out runs/voting --data audioset --data-dir "$(AUDIOSET)")
	cp runs/voting/voting-*.json figures
	$(BIN) figures/staircase.py

forms: $(STAMP) ## forms of the attention term on validation splits, as in figures/forms.md: FILMS=DIR, AUDIOSET=DIR; hours; resumes
	$(BIN) figures/forms.py --out runs/forms $(if $(FILMS),--films "$(FILMS)") $(if $(AUDIOSET),--audioset "$(AUDIOSET)")

plan: $(STAMP) ## measure a step and write what the full run would cost, figures/scale-plan.md: a minute
	OMP_NUM_THREADS=1 $(BIN) tests/benchmarks/plan.py --out figures

explore: $(STAMP) ## ideas that did not become defenses, as in figures/explored-synthetic.md: an hour; resumes
	$(BIN) figures/explore.py

colab: $(STAMP) ## write badges and repository name into the notebooks: make colab REPO=owner/name
	$(BIN) notebooks/colab.py "$(REPO)"

bench: $(STAMP) $(PEERS)/.installed ## time the project against its peers, as in figures/benchmarks.md: an hour
	$(PEERS)/bin/python tests/benchmarks/run.py --out figures $(ROWS)

lint: $(STAMP) ## style of code and notebooks, types of the library
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .
	$(BIN) -m mypy
	if command -v node >/dev/null; then node --check aart_lib/viz/page.js; fi

# The path is relative, so that a folder name with spaces never reaches make.
$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 5) and "requirements.txt pins versions for Python 3.11.5 or newer; name one with PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN) -m pip install -r requirements.txt
	$(BIN) -m pip install --no-deps -e .
	@touch $(STAMP)

# An environment of their own: some peers pin packages that ours needs newer. What cannot be installed is not measured.
$(PEERS)/.installed: tests/benchmarks/requirements-peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install -r tests/benchmarks/requirements-peers.txt
	-$(PEERS)/bin/python -m pip install -c tests/benchmarks/requirements-peers.txt tensorflow-cpu==2.21.0
	@touch $@
