# Two commands do everything on a fresh machine:   make run   (or   make emoji)   and   make test
# An interrupted `make run` or `make emoji` resumes where it stopped, a finished one changes nothing;
# `make clean-runs run` and `make clean-emoji emoji` start over.
PYTHON ?= python3
RUNS ?= runs
BIN := .venv/bin
resume = $(if $(wildcard $(RUNS)/$(1)/settings.json),--resume latest)
PRESET :=
shown := evaluation.json samples.png $(if $(filter emoji,$(PRESET)),samples.gif)
trained := $(RUNS)/base/manifest.json $(RUNS)/control/manifest.json

.PHONY: run emoji show samples gallery test claims clean-runs clean-emoji clean

run: .venv/ready  ## data, base, ControlNet, evaluation table and pictures, into runs/
	$(BIN)/python train_base.py $(PRESET:%=--preset %) --out $(RUNS)/base $(call resume,base)
	$(BIN)/python train_control.py --base $(RUNS)/base --out $(RUNS)/control $(call resume,control)
	@cat $(trained) | cmp -s - $(RUNS)/.shown && ls $(shown:%=$(RUNS)/%) || $(MAKE) show

emoji:  ## the same for emoji in eight colours at 64 px, into runs/emoji; about an hour
	$(MAKE) run RUNS=$(RUNS)/emoji PRESET=emoji

show: $(if $(filter emoji,$(PRESET)),gallery,samples)  ## pictures and evaluation
	$(BIN)/python -m tinyldm.evaluate --base $(RUNS)/base --control $(RUNS)/control --json $(RUNS)/evaluation.json
	cat $(trained) > $(RUNS)/.shown  # the checksums of the runs that they are of

gallery:
	$(BIN)/python -m tinyldm.evaluate.gallery --base $(RUNS)/base --control $(RUNS)/control \
		--out $(RUNS)/samples.png --animation $(RUNS)/samples.gif

samples:
	$(BIN)/python -m tinyldm.sample --base $(RUNS)/base --control $(RUNS)/control --out $(RUNS)/samples.png --hint-kind photo \
		--hint $(foreach name,coat coat bag bag dress ankle-boot,$(RUNS)/control/hints/$(name).png) \
		--prompt "a photo of a dark coat" "a photo of a light coat" "a photo of a dark bag" "a photo of a grey bag" \
		"a photo of a light dress" "a photo of a dark ankle boot"

claims: $(RUNS)/emoji/base/manifest.json  ## the papers' claims, tested; takes hours, and an interrupted run resumes
	$(BIN)/python -m tinyldm.claims --base $(RUNS)/emoji/base --folder $(RUNS)/claims

$(RUNS)/emoji/base/manifest.json: | .venv/ready
	$(BIN)/python train_base.py --preset emoji --out $(@D) $(call resume,emoji/base)

PARALLEL := -n auto --maxprocesses 8 --dist worksteal  # a process of one thread for each core
test: .venv/ready  ## lint, imports between the rooms, types, and the default test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m pytest -q $(PARALLEL)

.PHONY: test-oldest
OLDEST ?= python3.10
test-oldest:  ## the test suite with the oldest versions that pyproject.toml allows, Python's too
	$(OLDEST) -m venv .venv-oldest
	$(PYTHON) tests/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --disable-pip-version-check -c .venv-oldest/constraints.txt \
		-e '.[test,report]'
	.venv-oldest/bin/python -m pytest -q -W default $(PARALLEL)

.PHONY: mutants
EACH ?= 20
SEED ?= 0
mutants: .venv/mutants  ## the tests, tested; ONLY=tinyldm/diffusion.py is minutes, all modules are hours
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py --each $(EACH) --seed $(SEED) --out mutants-report.md \
		$(if $(ONLY),--only $(ONLY))

.venv/mutants: .venv/ready
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[mutants]'
	touch $@

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[test,report]'
	touch $@

clean-runs:  ## what `make run` made
	rm -rf $(addprefix $(RUNS)/,base control .shown $(shown))

clean-emoji:
	$(MAKE) clean-runs RUNS=$(RUNS)/emoji PRESET=emoji

clean:
	rm -rf $(RUNS) .venv .venv-oldest
