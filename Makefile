# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
# One more than the processors of a small machine: many tests wait for timeouts.
TESTERS ?= 3

.PHONY: demo demo-graphene test check lint advisories bench clean

# The stamps: an environment is remade when what it is made from changes.
$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test,all]'
	touch $@ $(VENV)/.demo

$(VENV)/.bench: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@ $(VENV)/.demo

## Label the embedded demo volume's synapses and show the first rows.
demo: $(VENV)/.demo
	$(BIN)/luigi --module pipeline SamplePoints --workers $(WORKERS)
	$(BIN)/python -m pipeline.show workspace/runs/synapses-volume-*/result.parquet

## Roots from a graph server, which the demo brings along, before and after two edits.
demo-graphene: $(VENV)/.demo
	$(BIN)/python demo/graphene_demo.py workspace/demo-graphene

## Run the tests.
test: $(VENV)/.test
	$(BIN)/python -m pytest -q -n $(TESTERS) --dist worksteal

## Time the pipeline against TensorStore and CloudVolume, in one run. VOXELPROBE_PINKY40 may name a real segmentation.
bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.run $(BENCH)

## Ask PyPI's advisory service for known holes in what is installed. Where it can't be reached, it says so of each package.
advisories: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip_audit --strict --skip-editable

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy

## What CI runs: lint, types, and the tests (import-linter is one of them).
check: lint test

clean:
	rm -rf $(VENV) workspace build *.egg-info
