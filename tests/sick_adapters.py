"""Adapters with something wrong, each beside a healthy one, and the check of what is said of them.

A maker is a function of a `Bench` that writes adapters and returns their folders. The wrong one has
the name "sick".
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from evox_evogm.problems.adapters.check_fit import check_together, fit_experts
from evox_evogm.problems.adapters.read_adapter import read_expert


@dataclass
class Bench:
    """What makers work with.

    :param make: the fixture `make_adapter`.
    :param edit_config: the fixture of that name.
    :param edit_tensors: the fixture of that name.
    :param model: the base model.
    :param tokenizer: its tokenizer.
    """

    make: Callable
    edit_config: Callable
    edit_tensors: Callable
    model: Any
    tokenizer: Any


def trained(**settings):
    """An adapter that peft made with these settings."""

    def make(bench):
        return [bench.make("healthy"), bench.make("sick", **settings)]

    return make


def configured(**settings):
    """An adapter with these settings in its configuration."""

    def make(bench):
        folder = bench.make("sick")
        bench.edit_config(folder, **settings)
        return [bench.make("healthy"), folder]

    return make


def with_tensors(change):
    """An adapter whose tensors are what a function makes of them."""

    def make(bench):
        folder = bench.make("sick")
        bench.edit_tensors(folder, change)
        return [bench.make("healthy"), folder]

    return make


def with_files(change):
    """An adapter whose folder a function has changed."""

    def make(bench):
        folder = bench.make("sick")
        change(folder)
        return [bench.make("healthy"), folder]

    return make


def load_experts(folders, model, tokenizer=None, names=None, *, same_base=False):
    """Read adapters, and check that they fit together and fit the model, as a problem does."""
    return fit_folders(folders, model, tokenizer, names, same_base=same_base).experts


def fit_folders(folders, model, tokenizer=None, names=None, *, same_base=False):
    """The same with the notes on what was taken for the same although it differs."""
    experts = []
    for index, folder in enumerate(folders):
        name = None if names is None else names[index]
        experts.append(read_expert(folder, name=name))
    check_together(experts)
    return fit_experts(experts, model, tokenizer, same_base=same_base)


def check_refusal(bench, folders, message, names=None):
    """Loading these adapters ends in one sentence that names the sick one and matches `message`."""
    with pytest.raises(ValueError, match=message) as caught:
        load_experts(folders, bench.model, bench.tokenizer, names)
    sentence = str(caught.value)
    assert re.match(r"experts?( 'sick'.*)?: ", sentence)
    assert "'sick'" in sentence
    assert "\n" not in sentence
