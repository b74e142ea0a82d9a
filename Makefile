# Two entrances: `make optimize` (the main job on the embedded model) and `make test`. Both set up ./.venv once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.headway-installed

.PHONY: setup optimize test nightly native lint docs results wheel clean

setup: $(STAMP)

$(STAMP): pyproject.toml CMakeLists.txt scripts/setup
	PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/setup
	@touch $(STAMP)

optimize: setup
	$(BIN)/headway optimize smollm2-135m --budget "latency<=6ms/token, quality>=0.95" --minimize size -o out/smollm2-135m

native:
	$(BIN)/pip install -q --no-build-isolation -e .

test: setup
	$(BIN)/python -m pytest --cov=headway --cov-report=

lint: setup
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q -d site

results: optimize
	$(BIN)/headway bench smollm2-135m --against torch --batch 1,4,8
	-$(BIN)/headway prove --all
	$(BIN)/python scripts/results

wheel: setup
	$(BIN)/pip wheel -q --no-deps -w dist .

# Other processors are emulated: apt-get install qemu-user-static g++-aarch64-linux-gnu. Nothing is skipped without them.
nightly: setup
	$(BIN)/python -m pytest -m nightly

clean:
	rm -rf build dist site out .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
