# Every target is self-contained: it makes .venv first where it needs one.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help .venv quickstart test lint size soak bench clean

help:
	@echo "make quickstart [SEED=n]   train, align, quantise and measure a tiny model: runs/quickstart"
	@echo "make test | lint | soak    the test suite | ruff and mypy | the long tests"
	@echo "make bench | size          speed against PyTorch and transformers | lines by folder"
	@echo "make clean                 remove caches and build outputs (runs/ and .venv stay)"

.venv: $(STAMP)

# torch comes first and alone, so that an index or wheel folder that was chosen for it decides which build is used.
# The witness is installed without its dependencies: only its plain PyTorch reference files are read, by the tests.
$(STAMP): requirements.lock requirements-witness.txt pyproject.toml
	@set -e; python=""; \
	for candidate in python3.11 python3; do \
	  if $$candidate -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; then \
	    python=$$candidate; break; fi; \
	done; \
	if [ -x $(BIN)/python ]; then exit 0; fi; \
	if [ -z "$$python" ]; then \
	  echo "moonlet needs Python 3.11: neither python3.11 nor a python3 that is 3.11 is on PATH; install it" >&2; exit 2; fi; \
	$$python -m venv $(VENV)
	$(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q -r requirements.lock
	$(BIN)/python -m pip install -q --no-deps -r requirements-witness.txt
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@$(BIN)/python -c 'from moonlet.model.kernels.native import why_not; print(why_not() or "native kernels: built")'
	@touch $(STAMP)

quickstart: $(STAMP)
	$(BIN)/moonlet run recipes/quickstart.toml --out runs/quickstart $(if $(SEED),--set run.seed=$(SEED))

test: $(STAMP)
	$(BIN)/python -m pytest -q

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

size: $(STAMP)
	@$(BIN)/python benchmarks/size.py

soak: $(STAMP)
	$(BIN)/python -m pytest -q -m soak

bench: $(STAMP)
	@set -e; for name in roofline kda_layer experts train_step decode engine; do echo "== $$name"; $(BIN)/python benchmarks/$$name.py; done

clean:
	rm -rf build dist src/*.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
