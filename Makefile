# Two commands matter: `make run` and `make test`. Both set up .venv first, once.
#
# An importable torch is used as it is (PYTHON chooses the interpreter); otherwise TORCH is installed. To choose a
# build of torch yourself, install it first, or give TORCH="..." as pip understands it.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: run test lint peers proofs bench clean

run: $(VENV)/.ready
	$(BIN)/regraft train digits --resume

test: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Other SNN libraries, for parity tests. Without their dependencies: two of them would replace a CPU torch by CUDA builds.
peers: $(VENV)/.ready-dev
	$(PIP) install --no-deps -r requirements/peers.txt
	$(BIN)/python -c "import triton" 2>/dev/null || $(PIP) install --no-deps -r requirements/triton.txt

# Proofs of minutes.
proofs: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -m slow

# The figures under results/.
bench: $(VENV)/.ready peers
	$(BIN)/python benchmarks/train_step.py --json results/train_step.json
	$(BIN)/python benchmarks/profile.py --json results/profile.json
	$(BIN)/python benchmarks/sparse_step.py --json results/sparse_step.json
	$(BIN)/python docs/speed.py results/sparse_step.json docs/speed.svg
	$(BIN)/python benchmarks/memory.py --json results/memory.json
	$(BIN)/python benchmarks/end_to_end.py digits --seeds 0 1 2 3 4 --ways plain dense sparse --json results/end_to_end/digits.json
	$(BIN)/python benchmarks/rewiring_cost.py --json results/rewiring_cost.json
	$(BIN)/python benchmarks/synops_vs_peers.py --json results/synops_vs_peers.json
	$(BIN)/python benchmarks/two_processes.py --json results/two_processes.json
	$(BIN)/python benchmarks/interruptions.py --json results/interruptions.json
	$(BIN)/regraft sweep digits_teachers --seed 0 1 2 3 4 --threads 1
	$(BIN)/python benchmarks/compare_arms.py runs/digits_teachers-sweep --baseline alone --out results/digits_teachers

clean:
	rm -rf $(VENV) runs build *.egg-info

$(VENV)/bin/python:
	@if $(PYTHON) -c "import torch" 2>/dev/null; \
	then echo "using the torch that $(PYTHON) has"; $(PYTHON) -m venv --system-site-packages $(VENV); \
	else $(PYTHON) -m venv $(VENV); fi
	$(PIP) install "pip>=25.1"

$(VENV)/.ready: $(VENV)/bin/python pyproject.toml setup.py $(wildcard regraft/kernels/src/*)
	$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) install $(TORCH)
	$(PIP) install --editable ".[digits,stats]"
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(PIP) install --group dev
	@touch $@
