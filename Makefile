# The README's two commands are `make demo` and `make test`. Every target makes its own environment first.
.DEFAULT_GOAL := help
.PHONY: help demo test soak check format lint types imports unit bench docs tools env build clean

ENTREPOT := .venv/bin/entrepot
BIN := .venv/bin
DEMO_ARGS ?=
BENCH_ARGS ?=
TEST_ARGS ?=
# Most tests wait for other programs, so that two processes take little more than half the time of one.
TEST_PROCESSES ?= 2
SOAK := $(addprefix tests/faults/,test_kill_rounds.py test_garbage_race.py test_fuzz.py)

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

demo: env ## the whole story on this machine; DEMO_ARGS=--once ends by itself
	$(ENTREPOT) demo $(DEMO_ARGS)

test: env tools ## install what tests need, and run them all; TEST_ARGS="-k name" selects
	$(BIN)/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile $(TEST_ARGS)

soak: env tools ## run the fault loops for long: ROUNDS kills, SOAK_SECONDS of races and fuzzing
	ROUNDS=$${ROUNDS:-300} SOAK_SECONDS=$${SOAK_SECONDS:-600} $(BIN)/pytest --timeout 0 $(SOAK)

check: lint types imports test ## everything that CI checks

format: env ## format the code
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lint: env ## format and lint, without changing anything
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: env ## type-check
	$(BIN)/mypy

imports: env ## who may import whom
	$(BIN)/lint-imports

unit: env ## the tests that need no other program
	$(BIN)/pytest tests/unit tests/http tests/contract $(TEST_ARGS)

bench: env tools ## measure side by side with other registries, and print the ratios
	$(BIN)/python -m bench $(BENCH_ARGS)

docs: env ## write the generated parts of the documentation anew
	$(BIN)/python scripts/write_reference.py

tools: env ## install the clients and servers that tests talk to (apt, PyPI)
	scripts/install-test-tools

env: .venv/.ready

.venv/.ready: uv.lock pyproject.toml scripts/make-environment
	scripts/make-environment
	@touch $@

build: env ## build the package for PyPI
	scripts/make-environment --build

clean: ## remove what was made here, but no data
	rm -rf .venv .tools dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
