# The one way to do each thing. `make serve`, `make demo` and `make test` install what they need.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
PORT ?= 8000
BIN := .venv/bin

.PHONY: serve demo test check check-static bench chaos format
.DELETE_ON_ERROR:

serve: .venv/installed  # start the service on 127.0.0.1:$(PORT)
	@$(BIN)/svd-serve serve --port $(PORT)

demo: .venv/installed  # make one video and print its path
	@SVD_PUBLIC_URL=http://127.0.0.1:$(PORT) $(BIN)/svd-serve demo

test: .venv/installed tests/js/node_modules  # pass every test
	$(BIN)/pytest

check: check-static test  # format, lint, types, import rules, tests

check-static: .venv/installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/installed  # print the figures of the sampler, of the store, of polling and uploads, and of the whole road
	$(BIN)/python -m loadtest.sampler
	$(BIN)/python -m loadtest.store
	$(BIN)/python -m loadtest.polling
	$(BIN)/python -m loadtest.upload
	$(BIN)/python -m loadtest.road

chaos: .venv/installed  # the long fault campaign, MINUTES=20; SEED=... repeats a plan
	$(BIN)/python -m loadtest.chaos --minutes $(or $(MINUTES),20) $(if $(SEED),--seed $(SEED))

format: .venv/installed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
		|| { echo "svd-serve needs Python 3.11 or 3.12; name one with PYTHON=..."; exit 1; }
	@echo "Installing into .venv (about 2 GB, some minutes) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# The JavaScript client is tested where there is a Node to run it.
tests/js/node_modules: tests/js/package-lock.json
	@if command -v npm >/dev/null; then npm ci --prefix tests/js --no-audit --no-fund --loglevel=error; fi
