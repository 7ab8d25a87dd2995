# Everything runs from .venv, which the first target that needs it makes.
# Needs Python 3.11 or newer (PYTHON=/path/to/python to choose one), make and git.

UV_VERSION := 0.13.8
BIN := .venv/bin
INSTALLED := .venv/.installed
# Two test processes with two threads each on two cores run many times slower than with one each.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
WORKERS ?= 2

.DEFAULT_GOAL := help
# Without its bytecode cache, every process would compile torch and open_clip anew: seconds each.
unexport PYTHONDONTWRITEBYTECODE
.NOTPARALLEL:
.PHONY: help demo demo-search test test-slow test-slurm demo-slurm chaos chaos-search test-all check format generate lock clean

help: ## these lines
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS='	' read -r name text; do \
	    printf '  make %-12s %s\n' "$$name" "$$text"; done

demo: $(INSTALLED) ## the quickstart ablation: table, HTML report, MLflow runs
	@$(BIN)/harness run ablations/quickstart.toml

demo-slurm: $(INSTALLED) ## the quickstart on a real SLURM of this machine, in a store of its own: build/demo-slurm
	@HARNESS_STORE=build/demo-slurm slurm/testcluster/cluster with \
	    $(BIN)/harness run ablations/quickstart.toml --on slurm/testcluster.toml

demo-search: $(INSTALLED) ## a search on the embedded world: thresholds and mixing ratio, ten minutes on 2 cores
	@$(BIN)/harness search ablations/searches/thresholds_shapes.toml

test: $(INSTALLED) ## the tests, but for the slow ones and those in a browser (ARGS="-k name" to choose)
	@$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

test-slow: $(INSTALLED) ## the slow tests and those in a browser (Debian's chromium and chromium-driver)
	@$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) -m "slow or browser" --timeout 1800 $(ARGS)

test-slurm: $(INSTALLED) ## the tests on a real SLURM of this machine (as root; Debian's slurm-wlm, slurmdbd, mariadb-server)
	@$(ONE_THREAD) slurm/testcluster/cluster with $(BIN)/python -m pytest -m slurm --timeout 1800 tests/slurm $(ARGS)

chaos: $(INSTALLED) ## 200 runs on the test cluster under fire (ARGS="--seed 7" repeats one)
	@$(ONE_THREAD) slurm/testcluster/cluster with $(BIN)/python -m tests.slurm.chaos $(ARGS)

chaos-search: $(INSTALLED) ## a search of 60 trials on the test cluster under fire (ARGS="--seed 7" repeats one)
	@$(ONE_THREAD) slurm/testcluster/cluster with $(BIN)/python -m tests.slurm.searching $(ARGS)

test-all: test test-slow ## all tests

check: $(INSTALLED) ## format, lint, strict types, import order
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache

format: $(INSTALLED) ## format the code and mend what the linter can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

generate: $(INSTALLED) ## write schemas/ and docs/specs.md from the models
	@$(BIN)/python -m harness.docs.reference

lock: $(INSTALLED) ## resolve pyproject.toml's dependencies anew into requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --upgrade \
	    --no-emit-index-url --no-header pyproject.toml --output-file requirements.lock

clean: ## remove what the targets made, but for the store of results
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find harness tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

PYTHONS := $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11 python)
RECENT := import sys; sys.exit(sys.version_info < (3, 11))

# One shell, so that the lock is held to the end where two makes start at once.
$(INSTALLED): pyproject.toml requirements.lock
	@set -eu; \
	if command -v flock >/dev/null 2>&1; then exec 9<requirements.lock; flock 9; fi; \
	if [ "$@" -nt pyproject.toml ] && [ "$@" -nt requirements.lock ]; then exit 0; fi; \
	found=""; \
	for python in $(PYTHONS); do \
	    if "$$python" -c '$(RECENT)' 2>/dev/null; then found="$$python"; break; fi; done; \
	if [ -z "$$found" ]; then \
	    echo 'no Python 3.11 or newer among:' '$(PYTHONS)' '- name one: make PYTHON=/path/to/python' >&2; exit 1; fi; \
	echo "setting up .venv with $$("$$found" --version)" >&2; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$$found" -m venv --clear .venv; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION); \
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock; \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .; \
	touch $@
