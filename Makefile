# Every target sets up what it needs by itself; `make` alone lists them. docs/install.md says what gets installed.
SHELL := /bin/bash
BIN := .venv/bin
# Tests run in two processes, those of a file in the same one, as they share what is costly.
BESIDE := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo test test-fast soak lint docs docs-site lock clean

help: ## list these targets
	@grep -E '^[a-z-]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: ## make .venv with every dependency and prefloop itself; does nothing when it is up to date
	@PYTHON="$(PYTHON)" requirements/setup.sh

demo: setup ## run the quickstart: a real model gets better over three iterations
	$(BIN)/prefloop run quickstart

test: setup lint ## everything a change must pass: lint, types, all tests but the soak
	$(BIN)/python -m pytest $(BESIDE) -m "not soak"

test-fast: setup ## the tests that need neither vLLM nor patience
	$(BIN)/python -m pytest $(BESIDE) -m "not vllm and not slow and not soak"

soak: setup ## the long proofs
	$(BIN)/python -m pytest -m soak

lint: setup ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: setup ## write the generated pages in docs/ anew
	$(BIN)/python -m loop.config.docs_page > docs/configuration.md
	$(BIN)/python -m trainer.losses.methods_page > docs/methods.md

docs-site: setup ## build the documentation as a site in site/, which opens from disk
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file website/mkdocs.yml

lock: setup ## resolve the dependencies anew and write requirements/*.lock
	requirements/lock.sh

clean: ## remove .venv and every cache; runs/ stays
	rm -rf .venv dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
