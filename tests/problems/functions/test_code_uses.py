"""What functions reach for, by their source alone: imports, files beside them, methods, texts."""

import importlib.util
from functools import partial

import pytest

from evox_evogm.problems.functions.code_uses import uses_of

MODULE = """
import os
import urllib.parse
try:
    from no_such_package import Client
except ImportError:
    pass
from helpers import ask, LIMIT
client = None
loaded = open("a/metric")

def by_guarded_import(doc):
    return Client().ask(doc)

def by_import_inside(doc):
    import urllib.request as web
    return web.urlopen(doc)

def harmless(doc):
    return urllib.parse.quote(doc) + os.path.sep

def by_another(doc):
    return by_import_inside(doc) and by_another(doc)

def by_file_beside(doc):
    return ask(doc)

def by_constant_beside(doc):
    return LIMIT

def by_variable(doc):
    return loaded

def by_inner(doc):
    return [(lambda: exec(doc))() for _ in doc]

class Scorer:
    def score(self, doc):
        return self._ask(doc)

    def _ask(self, doc):
        return os.system(doc)

    def other(self, doc):
        return Client

class Heir(Scorer):
    def score_twice(self, doc):
        return self._ask(doc) + self._ask(doc)

class Called:
    def __call__(self, doc):
        return exec(doc)

def make_closure(doc):
    def closure(doc):
        return TABLE["run"](doc)
    return closure

TABLE: dict = {"run": eval}
called = Called()
closure = make_closure(None)
"""
HELPERS = """
import requests
LIMIT = 3

def ask(doc):
    return requests.post("http://judge", data=doc)

def unused():
    eval("1")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module whose functions are never called, as `helpers` beside it is never imported."""
    (tmp_path / "helpers.py").write_text(HELPERS)
    path = tmp_path / "scoring.py"
    path.write_text(MODULE.replace('open("a/metric")', "1"))
    monkeypatch.syspath_prepend(tmp_path)
    spec = importlib.util.spec_from_file_location("scoring", path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    path.write_text(MODULE)
    return found


@pytest.mark.parametrize(
    ("name", "use", "file"),
    [
        ("by_guarded_import", "no_such_package.Client", "scoring.py"),
        ("by_import_inside", "urllib.request.urlopen", "scoring.py"),
        ("by_another", "urllib.request.urlopen", "scoring.py"),
        ("by_file_beside", "requests.post", "helpers.py"),
        ("by_variable", '"a/metric"', "scoring.py"),
        ("by_inner", "exec", "scoring.py"),
        ("Scorer.score", "os.system", "scoring.py"),
        ("Heir.score_twice", "os.system", "scoring.py"),
        ("called", "exec", "scoring.py"),
        ("closure", "eval", "scoring.py"),
    ],
)
def test_what_a_function_reaches_for(module, name, use, file):
    function = module
    for part in name.split("."):
        function = getattr(function, part)
    found = {str(one) for one in uses_of(function)}
    assert f"{use} in {file}" in found
    assert f"{use} in {file}" in {str(one) for one in uses_of(partial(function, 1))}


def test_what_it_does_not_reach_for(module):
    for name in ("harmless", "by_constant_beside", "by_file_beside", "by_another"):
        for use in uses_of(getattr(module, name)):
            assert not use.what.startswith(("no_such_package", "eval", "exec", "os.system"))
    assert "urllib.request" not in {use.what for use in uses_of(module.harmless)}
    assert not any("Client" in use.what for use in uses_of(module.Scorer.score))


def test_a_function_without_a_file_reaches_for_nothing():
    assert list(uses_of(len)) == []
    assert list(uses_of(eval("lambda doc: doc"))) == []


def test_modules_of_a_package_are_followed_by_their_full_names(tmp_path, monkeypatch):
    (tmp_path / "pack" / "deep").mkdir(parents=True)
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "deep" / "web.py").write_text("import socket\nadd = socket.socket\n")
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / "one.py"
    text = "from pack.deep.web import add\ndef score(doc):\n    return add(doc)\n"
    path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict = {}
    exec(compile(text.replace("from pack", "from math import sqrt as add #"), path, "exec"), names)
    assert "socket.socket" in {use.what for use in uses_of(names["score"], "pack")}
    assert {use.what for use in uses_of(names["score"])} >= {"pack.deep.web.add"}
