# Two commands matter: `make demo` and `make test`. Each creates .venv when it is missing.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin

.PHONY: demo test test-code test-browser check format docs install clean

demo: .venv/installed
	$(BIN)/hrbench demo

test: test-code test-browser

test-code: .venv/installed
	$(BIN)/python -m pytest -n auto --dist worksteal --ignore=tests/browser

# One process: they share a browser and a page.
test-browser: .venv/installed
	$(BIN)/python -m pytest -n 0 -q tests/browser -rs

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed
	$(BIN)/python tools/build_docs.py build/docs

install: .venv/installed

.venv/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "hrbench needs Python 3.11 or newer on the PATH (or: make PYTHON=/path/to/python)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info
