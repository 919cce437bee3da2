# The one way to do each thing. `make serve`, `make demo` and `make test` install what they need.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
PORT ?= 8000
SBOM ?= dist/sbom.json
PLATFORM ?= x86_64-manylinux_2_28
BIN := .venv/bin

.PHONY: serve demo test check check-static bench load chaos fuzz hostile format lock sbom
.DELETE_ON_ERROR:

serve: .venv/installed  # start the service on 127.0.0.1:$(PORT)
	@$(BIN)/svd-serve serve --port $(PORT)

demo: .venv/installed  # make one video and print its path
	@SVD_PUBLIC_URL=http://127.0.0.1:$(PORT) $(BIN)/svd-serve demo

test: .venv/installed tests/js/node_modules  # pass every test, in two processes; JOBS=4 in four
	$(BIN)/pytest --numprocesses $(or $(JOBS),2) --no-loadscope-reorder --durations=25

check: check-static test  # format, lint, types, import rules, tests

check-static: .venv/installed  # ruff's rules are those of security, too
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive deployments

bench: .venv/installed  # print the figures of the sampler, of the decoder, of the store, of polling, uploads and scrapes, and of the whole road
	$(BIN)/python -m loadtest.sampler
	$(BIN)/python -m loadtest.decoder
	$(BIN)/python -m loadtest.store
	$(BIN)/python -m loadtest.polling
	$(BIN)/python -m loadtest.upload
	$(BIN)/python -m loadtest.scrape
	$(BIN)/python -m loadtest.road

load: .venv/installed  # a short load of the default service, and dist/load/report.html; SHAPE=ramp spike soak mixed knee, ARGS="--users 8"
	$(BIN)/python -m loadtest.load $(or $(SHAPE),ramp) $(ARGS)

chaos: .venv/installed  # the long fault campaign, MINUTES=20; SEED=... repeats a plan
	$(BIN)/python -m loadtest.chaos --minutes $(or $(MINUTES),20) $(if $(SEED),--seed $(SEED))

fuzz: .venv/installed  # fuzz every parser for SECONDS=60 each; TARGETS="url body" only those
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),60) --keep .fuzz $(if $(SEED),--seed $(SEED)) $(TARGETS)

hostile: .venv/installed  # the table of 88 bad inputs through the real service, and its figures; ROWS="23 24" only those
	$(BIN)/python -m tests.hostile $(ROWS)

LOCKING = $(BIN)/uv pip compile pyproject.toml --constraint constraints.txt --python-platform $(PLATFORM) \
	--generate-hashes --no-emit-index-url --no-annotate --custom-compile-command 'make lock' --quiet

lock: .venv/installed  # pin and hash what a production image installs on PLATFORM; the same for Python 3.11 and 3.12
	@$(BIN)/pip install --quiet --constraint constraints.txt uv
	$(LOCKING) --python-version 3.11 --output-file requirements/production.txt
	@mkdir -p dist && cp requirements/production.txt dist/production-3.12.txt
	@$(LOCKING) --python-version 3.12 --output-file dist/production-3.12.txt
	@diff requirements/production.txt dist/production-3.12.txt || { echo "Python 3.12 wants others than 3.11"; exit 1; }

sbom: .venv/installed  # list what is installed, with versions and licences, as CycloneDX in $(SBOM)
	@mkdir -p $(dir $(SBOM))
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --gather-license-texts --output-reproducible \
		--output-file $(SBOM) $(BIN)/python

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
