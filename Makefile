# Needs python3 (3.11 or newer), make and a C++ compiler. The first target makes .venv and installs; later ones reuse it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-fast fuzz check bench-data bench-train bench-train-loop bench-writer soak clean

quickstart: .venv/installed
	$(BIN)/blsp quickstart

test: check test-fast
	$(BIN)/python -m pytest -m slow

# One process per core, and one thread in each.
test-fast: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 8 --dist loadfile

check: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Every parser on 10,000 drawn inputs, where `make test` has 200.
fuzz: .venv/installed
	OMP_NUM_THREADS=1 FUZZ_CASES=10000 $(BIN)/python -m pytest -m fuzz -n auto --maxprocesses 8 --timeout 3600

# Beside lhotse and webdataset. OUT=figures.json keeps the figures.
bench-data: .venv/bench-installed
	$(BIN)/python -m tests.bench.data $(if $(OUT),--out $(OUT))

# Each saving of a training step beside the authors' way; on a GPU both stages at real size.
bench-train: .venv/installed
	$(BIN)/python -m tests.bench.train $(if $(OUT),--out $(OUT))

# Checkpoints, and what the loop adds to DeepSpeed's own steps.
bench-train-loop: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.checkpoint
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.loop

# The writing of continuations beside the plain loop of the authors.
bench-writer: .venv/installed
	$(BIN)/python -m tests.bench.writer $(if $(OUT),--out $(OUT))

# 50 faults drawn from a seed, over one run that must end as an undisturbed one does. About twenty minutes.
soak: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.soak $(if $(SEED),--seed $(SEED))

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis quickstart
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first: whatever needs it then finds the pinned build instead of choosing one.
.venv/installed: setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is older; use: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,miniature]'
	@touch $@

.venv/bench-installed: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,miniature,bench]'
	@touch $@
