# Every target makes .venv by itself and installs again when its requirements change. PYTHON=python3.12 make test
# chooses another interpreter (3.10 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: excursion smoke test torture bench gpu clean

smoke: .venv/installed-run  # pretrains the smallest scale on the embedded world, evaluates it, prints the table
	rm -rf out/smoke
	$(BIN)/torchrun pretrain.py --scale smoke --out out/smoke
	$(BIN)/python eval.py --checkpoint out/smoke/step_*.pt --limit 64 --samples 8 --k 1 8

excursion: .venv/installed-run  # the whole experiment at micro scale: half an hour to an hour on 2 cores; goes on where it was stopped
	$(BIN)/python -m excursion run --scale micro --tokens 7M
	@echo "the report: out/excursion/report.html"

test: .venv/installed-dev  # style and all tests that need no GPU; what .ci/run calls
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=8

torture: .venv/installed-dev  # kills, full disks, flipped bits, odd flags: PARTS="kill disk" names parts (tests/torture.py)
	$(BIN)/python tests/torture.py $(PARTS)

bench: .venv/installed-bench  # speed and memory, as ratios to the machine's own limits and to other libraries
	$(BIN)/python -m tools.bench

gpu: .venv/installed-bench .venv/installed-dev  # the first hour on a GPU machine: does it work, how fast is it; out/gpu/report.md
	$(BIN)/python -m tools.first_hour

clean:  # caches and the smoke run; .venv and all other runs in out/ stay
	rm -rf out/smoke .pytest_cache .ruff_cache .hypothesis

# Stamps: each is newer than the requirements that were last installed for it
.venv/installed-run: requirements.txt
.venv/installed-dev: requirements-dev.txt requirements.txt
.venv/installed-bench: requirements-bench.txt requirements.txt

.venv/installed-%: | $(BIN)/pip
	@echo "installing $< into .venv (about 2 minutes the first time)"
	@$(BIN)/pip install -qq --disable-pip-version-check -r $<
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is older than Python 3.10: name a newer one, as in 'make PYTHON=python3.12 $(MAKECMDGOALS)'"; exit 1; }
	$(PYTHON) -m venv .venv
