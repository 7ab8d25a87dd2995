# Every target runs from .venv. The first target that needs .venv creates it.
# Needs make, git and Python 3.11 or newer (choose one with PYTHON=/path/to/python).

UV_VERSION := 0.13.8
BIN := .venv/bin
INSTALLED := .venv/.installed
# On two cores, two test processes with two threads each run many times slower than with one thread each.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# Temporary files in memory, where there are 8 GB: waiting for a disk takes a quarter of the tests' time.
IN_MEMORY := $(shell test "$$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 {print $$4}')" -gt 8000000 2>/dev/null \
    && echo TMPDIR=/dev/shm)
WORKERS ?= 2
N ?= 10000
BUDGET ?= inf
SEED := $(or $(SEED),$(shell date +%s))

.DEFAULT_GOAL := help
# Without the bytecode cache, every process compiles torch and open_clip again, which takes seconds.
unexport PYTHONDONTWRITEBYTECODE
.NOTPARALLEL:
.PHONY: help demo demo-time demo-search picture results docs test test-slow test-slurm mutations histories fuzz demo-slurm chaos chaos-search wheels gpu test-all check format generate lock clean

help: ## show this help
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS='	' read -r name text; do \
	    printf '  make %-12s %s\n' "$$name" "$$text"; done

demo: $(INSTALLED) ## run the quickstart ablation: table, HTML report, MLflow runs
	@$(BIN)/harness run ablations/quickstart.toml

demo-slurm: $(INSTALLED) ## run the quickstart on a real SLURM on this machine, with its own store in build/demo-slurm
	@HARNESS_STORE=build/demo-slurm slurm/testcluster/cluster with \
	    $(BIN)/harness run ablations/quickstart.toml --on slurm/testcluster.toml

demo-search: $(INSTALLED) ## search caption mix, threshold and learning rate on the embedded data set; ten minutes on 2 cores
	@$(BIN)/harness search ablations/searches/captions_shapes.toml

demo-time: $(INSTALLED) ## time the demo as a whole process, five times (ARGS="--times 3"); the machine should be idle
	@$(BIN)/python benchmarks/demo.py $(ARGS)

picture: demo ## draw docs/report.png from the quickstart's report (needs Debian's chromium)
	@chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1280,1370 \
	    --screenshot=docs/report.png "file://$(abspath $(or $(HARNESS_STORE),store))/reports/quickstart.html"

results: $(INSTALLED) ## write the tables of docs/results.md from docs/results in seconds (TRAIN=1 trains them again; ADD=FOLDER)
	@$(BIN)/python -m benchmarks.results $(if $(TRAIN),--train) $(if $(ADD),--add "$(ADD)") $(ARGS)

docs: $(INSTALLED) ## build the documentation, with search, in build/site (needs no network once its packages are cached)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/uv tool run --quiet --with 'mkdocs-material>=9.5,<10' --from 'mkdocs>=1.6,<2' \
	    mkdocs build --strict --quiet
	@echo "build/site/index.html; to search in it: $(BIN)/python -m http.server -d build/site"

test: $(INSTALLED) ## run the tests, except slow and browser tests (select with ARGS="-k name")
	@$(ONE_THREAD) $(IN_MEMORY) $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

test-slow: $(INSTALLED) ## run the slow and browser tests (needs Debian's chromium and chromium-driver)
	@$(ONE_THREAD) $(IN_MEMORY) $(BIN)/python -m pytest -n $(WORKERS) -m "slow or browser" --timeout 1800 $(ARGS)

mutations: $(INSTALLED) ## check that the tests notice small faults in a copy of the code (ARGS="--only 3")
	@$(ONE_THREAD) $(IN_MEMORY) $(BIN)/python -m tests.mutations --jobs $(WORKERS) $(ARGS)

histories: $(INSTALLED) ## run N random histories of sweeps over a simulated scheduler (N=10000)
	@$(ONE_THREAD) $(IN_MEMORY) HISTORIES=$(N) FIRST=$(or $(FIRST),$(SEED)) SHARDS=$(WORKERS) $(BIN)/python -m pytest -n $(WORKERS) --timeout 0 \
	    tests/execute/test_histories.py $(ARGS)

fuzz: $(INSTALLED) ## run the fuzzers with a fresh seed: all cases, or BUDGET=300 seconds (SEED=7 repeats a campaign)
	@echo "FUZZ_SEED=$(SEED)"
	@$(ONE_THREAD) $(IN_MEMORY) FUZZ_SEED=$(SEED) FUZZ_BUDGET=$(BUDGET) $(BIN)/python -m pytest -m fuzz --timeout 0 -n $(WORKERS) --dist loadfile tests/fuzz $(ARGS)

test-slurm: $(INSTALLED) ## run the tests on a real SLURM on this machine (as root; needs Debian's slurm-wlm, slurmdbd, mariadb-server)
	@$(ONE_THREAD) slurm/testcluster/cluster with $(BIN)/python -m pytest -m slurm --timeout 1800 tests/slurm $(ARGS)

chaos: $(INSTALLED) ## 200 runs on the test cluster with injected faults (ARGS="--seed 7" repeats a campaign)
	@$(ONE_THREAD) slurm/testcluster/cluster with $(BIN)/python -m tests.slurm.chaos $(ARGS)

chaos-search: $(INSTALLED) ## 60 search trials on the test cluster with injected faults (ARGS="--seed 7" repeats a campaign)
	@$(ONE_THREAD) slurm/testcluster/cluster with $(BIN)/python -m tests.slurm.searching $(ARGS)

# What a bare machine with torch, Triton, timm and transformers lacks to train and evaluate through the API.
WHEELS := open-clip-torch ftfy wcwidth pydantic pydantic-core annotated-types typing-inspection
WHEELS_PYTHON ?= 3.12

wheels: $(INSTALLED) ## gather in build/wheels what a bare GPU machine lacks (WHEELS_PYTHON=3.12 is its Python)
	@mkdir -p build/wheels && rm -f build/wheels/*
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
	    --python-version $(WHEELS_PYTHON) --implementation cp --dest build/wheels \
	    $(foreach tag,manylinux_2_28 manylinux_2_17 manylinux2014 manylinux1,--platform $(tag)_x86_64) \
	    $$(for name in $(WHEELS); do grep "^$$name==" requirements.lock | cut -d';' -f1; done) pyarrow==18.1.0
	@du -sh build/wheels

gpu: ## measure on this machine's GPU what build/gpu/figures.json lacks, ten minutes at most (ARGS="--only p1")
	@set -e; if [ -d build/wheels ]; then \
	    test -d build/site-gpu || python3 -m pip install --quiet --no-index --no-deps --no-compile \
	        --target build/site-gpu build/wheels/*.whl; \
	    PYTHONPATH=build/site-gpu python3 -m benchmarks.gpu $(ARGS); \
	else $(MAKE) --no-print-directory $(INSTALLED); $(BIN)/python -m benchmarks.gpu $(ARGS); fi

test-all: test test-slow ## run all tests

check: $(INSTALLED) ## check format, lint, strict types and import order
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache

format: $(INSTALLED) ## format the code and apply the linter's fixes
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

generate: $(INSTALLED) ## write schemas/, docs/specs.md and the table of states in docs/slurm.md from the code
	@$(BIN)/python -m harness.docs.reference
	@$(BIN)/python -m harness.execute.life

lock: $(INSTALLED) ## resolve pyproject.toml's dependencies again into requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --upgrade \
	    --no-emit-index-url --no-header pyproject.toml --output-file requirements.lock

clean: ## remove everything the targets made, except the store of results
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find harness tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

PYTHONS := $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11 python)
RECENT := import sys; sys.exit(sys.version_info < (3, 11))

# Use one shell, so that it holds the lock to the end if two makes start at once.
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
