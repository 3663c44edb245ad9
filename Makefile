# Every target uses .venv, which `make setup` builds; override with VENV=... or PYTHON=...
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.stamp

PACKAGES := kafka_wire metadata_service offset_sync replicator proxy kafka_client runtime cli console
SOURCES  := $(PACKAGES) tools tests

.PHONY: setup requirements check

setup: $(STAMP)

$(STAMP): requirements-dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# Locks again. The runtime lock is constrained by the development lock, so what is tested is what is shipped.
COMPILE := $(BIN)/pip-compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --strip-extras --allow-unsafe
requirements:
	CUSTOM_COMPILE_COMMAND="make requirements" $(COMPILE) --output-file requirements-dev.txt requirements-dev.in
	CUSTOM_COMPILE_COMMAND="make requirements" $(COMPILE) --constraint requirements-dev.txt --output-file requirements.txt requirements.in
