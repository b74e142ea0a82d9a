# Two entrances: `make optimize` (the main job on the embedded model) and `make test`. Both set up ./.venv once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.headway-installed

.PHONY: setup optimize test nightly native lint docs wheel clean

setup: $(STAMP)

$(STAMP): pyproject.toml CMakeLists.txt scripts/setup
	PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/setup
	@touch $(STAMP)

optimize: setup
	$(BIN)/headway optimize smollm2-135m --budget "latency<=6ms/token, quality>=0.98" --minimize size -o out/smollm2-135m

native:
	$(BIN)/pip install -q --no-build-isolation -e .

test: setup
	$(BIN)/python -m pytest

nightly: setup
	$(BIN)/python -m pytest -m nightly

clean:
	rm -rf build dist site out .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
