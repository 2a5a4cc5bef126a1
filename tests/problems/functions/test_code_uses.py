"""What functions reach for, by their source alone: imports, files beside them, methods, texts."""

import importlib.util
from functools import partial

import pytest

from evox_evogm.problems.functions.code_uses import uses_in, uses_of

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


PACKAGE = {
    "__init__.py": "import socket\ndef of_package(doc):\n    return socket.socket()\n",
    "web.py": "import requests\ndef ask(doc):\n    return requests.post(doc)\n",
    "names.py": "from .web import ask\nLIMIT = 3\n",
    "local/requests.py": "def count(doc):\n    return len(doc)\n",
    "deep/__init__.py": "",
    "deep/bases.py": (
        "from ..web import ask\n"
        "class Base:\n"
        "    def local(self, doc):\n"
        "        return len(doc)\n"
        "    def remote(self, doc):\n"
        "        return ask(doc)\n"
    ),
    "deep/score.py": """
import requests
from . import bases
from .. import of_package
from ..local import requests as counting
from ..names import *
from ..names import ask as renamed
from ..local.requests import count
from ..web import ask as web_ask

class Heir(bases.Base):
    requests: list = []
    def uses_local(self, doc):
        return self.local(doc) + len(self.requests)
    def uses_remote(self, doc):
        return self.remote(doc)

def by_two_levels(doc):
    return web_ask(doc)

def by_reexport(doc):
    return renamed(doc)

def by_star(doc):
    return ask(doc)

def by_package(doc):
    return of_package(doc)

def by_own_import(doc):
    from ..web import ask as web_ask
    return web_ask(doc)

def by_global(doc):
    global requests
    requests = requests or doc
    return requests.get(doc)

def named_as_a_module(doc):
    return count(doc) + counting.count(doc)

def with_attributes(doc):
    return len(doc.requests) + doc.socket.count + doc["requests"].socket()

def with_arguments(doc, requests, *, eval=None):
    return requests.get(eval) + sum(exec for exec in doc)

def with_variables(doc):
    requests = doc["requests"]
    try:
        return (lambda socket: socket.find(requests[0]))(doc)
    except ValueError as exec:
        return exec
""",
}
NETWORK = ("requests", "socket", "exec", "eval")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The file of a module in a package, which is never imported."""
    for name, text in PACKAGE.items():
        path = tmp_path / "tasks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "tasks" / "deep" / "score.py"


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("by_two_levels", "requests.post in web.py"),
        ("by_reexport", "requests.post in web.py"),
        ("by_star", "requests.post in web.py"),
        ("by_own_import", "requests.post in web.py"),
        ("by_package", "socket.socket in __init__.py"),
        ("by_global", "requests.get in score.py"),
        ("Heir.uses_remote", "requests.post in web.py"),
    ],
)
def test_relative_imports_are_followed(package, name, use):
    assert use in {str(found) for found in uses_in(package, name)}


@pytest.mark.parametrize(
    "name",
    [
        "named_as_a_module",
        "with_attributes",
        "with_arguments",
        "with_variables",
        "Heir.uses_local",
    ],
)
def test_names_that_are_like_those_of_modules_are_no_uses(package, name):
    uses = {use.what.partition(".")[0] for use in uses_in(package, name)}
    assert not uses & set(NETWORK)
