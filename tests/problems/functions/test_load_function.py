"""Functions by name: imported from a folder, with a digest of what they are made of."""

import sys
from pathlib import Path

import pytest

import evox_evogm
from evox_evogm.problems.functions.load_function import files_imported, load_function


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a module, a helper of it, and a package; Python's path is restored."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine_a.py").write_text(
        "import json\nfrom helper_a import VALUE\n\n\ndef score(model):\n    return VALUE\n"
    )
    (tmp_path / "helper_a.py").write_text("VALUE = 1\n")
    (tmp_path / "pack_a").mkdir()
    (tmp_path / "pack_a" / "__init__.py").write_text("")
    (tmp_path / "pack_a" / "inner.py").write_text(
        "class Judge:\n    def score(model):\n        return 2\n"
    )
    yield tmp_path
    for name in ("mine_a", "helper_a", "pack_a", "pack_a.inner"):
        sys.modules.pop(name, None)


def test_a_function_comes_from_the_folder_or_a_package_in_it(folder):
    function, digest = load_function("mine_a:score", folder)
    assert function(None) == 1 and len(digest) == 64
    assert load_function("pack_a.inner:Judge.score", folder)[0](None) == 2


def test_a_changed_module_is_read_anew_and_has_another_digest(folder):
    _, before = load_function("mine_a:score", folder)
    assert load_function("mine_a:score", folder)[1] == before
    (folder / "helper_a.py").write_text("VALUE = 1234\n")
    function, after = load_function("mine_a:score", folder)
    assert function(None) == 1234 and after != before
    (folder / "other_a.py").write_text("nobody imports this\n")
    assert load_function("mine_a:score", folder)[1] == after


def test_a_module_of_the_same_name_in_another_folder_is_another(folder, tmp_path_factory):
    load_function("mine_a:score", folder)
    other = tmp_path_factory.mktemp("other")
    (other / "mine_a.py").write_text("def score(model):\n    return 5\n")
    assert load_function("mine_a:score", other)[0](None) == 5
    assert load_function("mine_a:score", folder)[0](None) == 1


def test_modules_of_this_package_are_not_read_anew_where_the_folder_has_them(folder):
    """As in its checkout."""
    import evox_evogm.problems.checks as checks

    (folder / "evox_evogm").symlink_to(Path(evox_evogm.__file__).parent)
    (folder / "mine_a.py").write_text(
        "from evox_evogm.problems import checks\n\n\ndef score(model):\n    return checks\n"
    )
    function, _ = load_function("mine_a:score", folder)
    assert function(None) is checks is sys.modules["evox_evogm.problems.checks"]
    assert files_imported(folder / "mine_a.py", folder) == set()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine_a", "expected module:function, such as my_fitness:score, found 'mine_a'"),
        ("mine_a:", "expected module:function"),
        ("missing_a:score", "found ModuleNotFoundError: No module named 'missing_a'"),
        ("mine_a:scor", "expected a function scor in .*found none; did you mean 'score'"),
        ("mine_a:VALUE", "expected a function, found 1"),
        ("broken_a:score", "found SyntaxError"),
        ("exits_a:score", "found SystemExit: 3"),
    ],
)
def test_what_cannot_be_imported_is_refused_in_a_sentence(folder, name, message):
    (folder / "broken_a.py").write_text("def score(:\n")
    (folder / "exits_a.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(ValueError, match=message) as error:
        load_function(name, folder)
    assert "\n" not in str(error.value)


def test_relative_imports_are_part_of_a_function(tmp_path):
    (tmp_path / "pack" / "deep").mkdir(parents=True)
    texts = {
        "pack/score.py": "from .deep import one\nfrom . import two\n",
        "pack/deep/one.py": "from ..three import LIMIT\n",
        "pack/two.py": "",
        "pack/three.py": "LIMIT = 3\n",
        "deep.py": "",  # as if `from .deep` were `from deep`
        "two.py": "",
        "three.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    found = files_imported(tmp_path / "pack" / "score.py", tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in found}
    assert names == {"pack/deep/one.py", "pack/two.py", "pack/three.py"}
