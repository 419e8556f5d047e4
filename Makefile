.PHONY: install dev report test test-all lint docs clean
PYTHON ?= python3
BIN := .venv/bin
# Processes that share the test files.
JOBS ?= 2

install: .venv/.installed
dev: .venv/.installed-dev

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

report: install results/report/index.html

# A finished report is kept: remove its folder to have it made again.
results/report/index.html: | install
	$(BIN)/python -m probe report

test: dev
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

test-all: dev
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m ''

lint: dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# A warning is an error: a page that could not be made as meant is not made at all.
docs: dev
	$(BIN)/python -W error::UserWarning docs/build.py docs/reference probe
	@echo "docs/reference/index.html; guides are in docs/README.md"

clean:
	rm -rf .venv results build dist docs/reference *.egg-info
