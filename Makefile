# Every target uses .venv, which `make setup` builds; override with VENV=... or PYTHON=...
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.stamp

PACKAGES := kafka_wire metadata_service offset_sync replicator proxy kafka_client runtime admin cli console
SOURCES  := $(PACKAGES) tools tests

.PHONY: setup requirements kafka format check test soak bench bench-mirror bench-move bench-tables demo clean

setup: $(STAMP)

$(STAMP): requirements-dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.txt
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# Locks again. The runtime lock is constrained by the development lock, so what is tested is what is shipped.
COMPILE := $(BIN)/pip-compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --strip-extras --allow-unsafe
requirements: setup
	CUSTOM_COMPILE_COMMAND="make requirements" $(COMPILE) --output-file requirements-dev.txt requirements-dev.in
	CUSTOM_COMPILE_COMMAND="make requirements" $(COMPILE) --constraint requirements-dev.txt --output-file requirements.txt requirements.in

# Kafka and the Java test client, into a cache outside the tree; java and maven are installed where that is possible.
kafka: setup
	$(BIN)/python -m tools.kafka.get
	$(BIN)/python -m tools.java_client

format: setup
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

check: setup
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/unit tests/property

# Everything, at small counts; real brokers, real clients. With AGAIN=1 a few failures (at most AGAIN_MOST) are tried
# once more, alone: on a machine that is shared with others, time limits are sometimes met by accident.
AGAIN_MOST ?= 12
test: check kafka
	tools/real_tests.sh $(BIN)/pytest $(if $(AGAIN),again $(AGAIN_MOST))

# Long runs under load and faults, and property tests with examples nobody has tried yet; writes the report.
soak: kafka
	$(BIN)/python -m tools.soak

bench-mirror: kafka
	$(BIN)/python -m tools.bench.mirror

bench-move: kafka
	$(BIN)/python -m tools.bench.moves

bench: kafka
	$(BIN)/python -m tools.bench

bench-tables: setup
	$(BIN)/python -m tools.bench.tables

demo: kafka
	$(BIN)/python -m tools.demo

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
