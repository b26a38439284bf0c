# Every target makes .venv by itself. PYTHON=python3.12 make test chooses another interpreter (3.10 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: smoke test bench clean

smoke: .venv/run
	rm -rf out/smoke
	$(BIN)/torchrun pretrain.py --scale smoke --out out/smoke
	$(BIN)/python eval.py --checkpoint out/smoke/step_*.pt --limit 64 --n 8 --k 1 8

test: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q --durations=8

bench: .venv/dev
	$(BIN)/python bench.py

# Files that say when which requirements were installed
.venv/run: requirements.txt | .venv/bin/pip
	@echo "installing requirements.txt into .venv (about 2 minutes)"
	@$(BIN)/pip install -q --disable-pip-version-check -r requirements.txt 2>&1 | grep -v '^WARNING: Location' || true
	@$(BIN)/python -c "import torch, tiktoken, tyro" && touch $@

.venv/dev: requirements.txt requirements-dev.txt | .venv/bin/pip
	@echo "installing requirements-dev.txt into .venv (about 2 minutes)"
	@$(BIN)/pip install -q --disable-pip-version-check -r requirements-dev.txt 2>&1 | grep -v '^WARNING: Location' || true
	@$(BIN)/python -c "import torch, pytest, hypothesis, transformers" && touch $@

.venv/bin/pip:
	$(PYTHON) -m venv .venv

clean:
	rm -rf out .pytest_cache .ruff_cache .hypothesis
