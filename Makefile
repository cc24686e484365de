# Two commands do all the set-up, in either order: `make quickstart` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install quickstart test check slow

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

quickstart: install
	$(BIN)/python -m qat_lightning +experiment=quickstart

test: install
	$(BIN)/python -m pytest -n 2

slow: install
	$(BIN)/python -m pytest -m slow

check: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pre-commit run --all-files
