# The commands that people, pre-commit and CI all run. `make serve` and `make test` need nothing but python3 (3.10 to 3.13).
SHELL := /bin/bash
.DEFAULT_GOAL := help
ARGS ?=
CODE := src tests examples benchmarks scripts training setup.py

# Use the active virtual environment; make one in .venv when none is active.
ifdef VIRTUAL_ENV
PYTHON := $(VIRTUAL_ENV)/bin/python
else
PYTHON := .venv/bin/python
endif

.PHONY: help serve test check fmt test-browser test-clients docs docs-reference test-gpu bench bench-gpu soak wheel install install-dev clean

help:  ## this list; ARGS="..." is handed on, as in make serve ARGS="--port 8001"
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-15s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: install  ## install quire and serve the bundled model on http://127.0.0.1:8000
	@$(PYTHON) -m quire serve $(ARGS)

test: install-dev  ## the default suite: CPU, no network but package indexes
	@$(PYTHON) -m pytest -n logical --maxprocesses 8 --dist loadfile $(ARGS)

check: install-dev  ## formatting, lint, types, layer contract, documents; sizes are printed
	$(PYTHON) -m ruff format --check $(CODE)
	$(PYTHON) -m ruff check $(CODE)
	$(PYTHON) -m mypy src/quire
	$(PYTHON) -m pytest tests/architecture
	$(PYTHON) scripts/sizes.py

fmt: install-dev  ## format and fix what can be fixed
	$(PYTHON) -m ruff format $(CODE)
	$(PYTHON) -m ruff check --fix $(CODE)

test-browser: install-dev  ## the chat page and the dashboard in headless Chromium, which is installed by apt where it is missing
	@command -v chromium chromium-browser google-chrome >/dev/null || bash scripts/install-chromium.sh
	@$(PYTHON) -m pytest tests/pages $(ARGS)

docs: install-dev  ## the documentation site, English and Chinese, in site/
	$(PYTHON) -m mkdocs build --quiet --strict --config-file mkdocs.yml
	$(PYTHON) -m mkdocs build --quiet --strict --config-file mkdocs.zh.yml

docs-reference: install-dev  ## the reference pages of the guide, from the program
	@$(PYTHON) scripts/reference.py

test-clients: install-dev  ## every client library in an environment of its own: much is installed, into .cache
	@QUIRE_CLIENTS=1 $(PYTHON) -m pytest tests/clients $(ARGS)

test-gpu:  ## tests that need a GPU, in the environment that is active
	PYTHONPATH=src$${PYTHONPATH:+:$$PYTHONPATH} $${VIRTUAL_ENV:+$$VIRTUAL_ENV/bin/}python3 -m pytest tests/gpu $(ARGS)

bench: install-dev  ## CPU benchmark beside transformers' generate, in one run
	$(PYTHON) benchmarks/cpu_versus_transformers.py $(ARGS)

bench-gpu:  ## quire beside vLLM and SGLang on one GPU, in the environment that is active; ARGS="--help" tells how to name the peers
	@PYTHONPATH=src$${PYTHONPATH:+:$$PYTHONPATH} $${VIRTUAL_ENV:+$$VIRTUAL_ENV/bin/}python3 benchmarks/versus_peers.py $(ARGS)

soak: install-dev  ## the long versions: 10,000 bit-identity pairs, 20 engine kills and the like
	QUIRE_SOAK=1 QUIRE_IDENTITY_PAIRS=10000 QUIRE_PARITY_POSITIONS=2000 $(PYTHON) -m pytest --timeout=3600 $(ARGS)

wheel: install-dev  ## a wheel for this kind of machine, in dist/
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls -lh dist/*.whl

install:
	@bash scripts/install.sh "$(PYTHON)"

install-dev:
	@bash scripts/install.sh "$(PYTHON)" dev

clean:  ## remove what was built, .venv included
	rm -rf build dist site .venv .cache src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
