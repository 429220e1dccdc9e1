# Two commands do everything on a fresh machine:   make run   and   make test
PYTHON ?= python3
BIN := .venv/bin
RUNS ?= runs

.PHONY: run test lint clean

run: .venv/ready  ## data, base, ControlNet, evaluation table and pictures, into runs/
	$(BIN)/python train_base.py --out $(RUNS)/base --overwrite
	$(BIN)/python train_control.py --base $(RUNS)/base --out $(RUNS)/control --overwrite
	$(BIN)/python -m tinyldm.evaluate --base $(RUNS)/base --control $(RUNS)/control --json $(RUNS)/evaluation.json
	$(BIN)/python -m tinyldm.sample --base $(RUNS)/base --control $(RUNS)/control --out $(RUNS)/samples.png \
		--hint $(foreach name,bag bag coat coat dress ankle-boot,$(RUNS)/control/hints/$(name).png) \
		--prompt "a photo of a dark bag" "a photo of a grey bag" "a photo of a dark coat" "a photo of a light coat" \
		"a photo of a light dress" "a photo of a dark ankle boot"

test: .venv/ready  ## lint and the default test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,report]'
	touch $@

clean:
	rm -rf .venv $(RUNS)
