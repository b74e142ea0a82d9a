# Two entrances: `make optimize` (the main job on the embedded model) and `make test`. Both set up ./.venv once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.headway-installed

.PHONY: setup optimize test nightly native lint docs results performance wheel clean

setup: $(STAMP)

$(STAMP): pyproject.toml CMakeLists.txt scripts/setup
	PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/setup
	@touch $(STAMP)

optimize: setup
	$(BIN)/headway optimize smollm2-135m --budget "size<=88MB, quality>=0.95" --minimize latency -o out/smollm2-135m

native:
	$(BIN)/pip install -q --no-build-isolation -e .

test: setup
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q -d site

results: optimize
	$(BIN)/headway bench smollm2-135m --against torch --batch 1,4,8
	-$(BIN)/headway prove --all
	$(BIN)/python scripts/results

# Beside llama.cpp (built from source, some minutes) and torch in bfloat16; then the tables of docs/performance.md.
performance: setup
	$(BIN)/pip install -q llama-cpp-python
	for model in smollm2-135m gemma3-270m; do for threads in 1 2; do \
	$(BIN)/headway bench $$model --threads $$threads --against llama.cpp,torch:bf16 --batch 1,2,4,8 && \
	$(BIN)/headway bench $$model --threads $$threads --against llama.cpp --context 4096 && \
	$(BIN)/headway bench $$model --threads $$threads --against llama.cpp --context 4096 --recipe kv-int8 || exit 1; \
	done; done
	$(BIN)/headway bench smollm2-135m --against llama.cpp:all
	$(BIN)/headway bench minilm-l6 --recipe int8 --against torch,onnxruntime --batch 1,32
	$(BIN)/headway bench efficientnet-lite0 --recipe int8 --against torch,onnxruntime --batch 1,32
	$(BIN)/python scripts/results

wheel: setup
	$(BIN)/pip wheel -q --no-deps -w dist .

# Other processors are emulated: apt-get install qemu-user-static g++-aarch64-linux-gnu. Nothing is skipped without them.
nightly: setup
	$(BIN)/python -m pytest -m nightly
	$(BIN)/python -m pytest --hypothesis-profile=anew

clean:
	rm -rf build dist site out .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
