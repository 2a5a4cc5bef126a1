"""A base that is nowhere is said to be nowhere, with the name that was probably meant."""

import pytest
import torch
from fake_hub import FakeHub, add_to_cache

from evox_evogm.problems.inference.base_model import load_base
from evox_evogm.problems.inference.base_not_found import check_found, why_not_found

CODER = "Qwen/Qwen2.5-Coder-0.5B"
OFFLINE = "neither a folder nor in the hub's cache, and HF_HUB_OFFLINE is set"


@pytest.fixture
def folder(tmp_path, hub_cache):
    """A folder with the folder `base`, and a cache with a model."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    add_to_cache(hub_cache, CODER, tmp_path / "base")
    return tmp_path


def test_what_is_there_is_found(folder):
    for base in ("base", "./base", str(folder / "base"), CODER, "smollm2-135m-instruct"):
        assert why_not_found(base, folder) is None, base
        check_found(base, folder)


@pytest.mark.parametrize(
    ("base", "near"),
    [
        ("Qwen/Qwen2.5-Codr-0.5B", CODER),
        ("qwen/qwen2.5-coder-0.5b", CODER),
        ("Qwen2.5-Coder-0.5B", CODER),
        ("smollm2-135m-instuct", "smollm2-135m-instruct"),
    ],
)
def test_a_misspelt_name_of_the_hub_says_which_model_is_here(folder, base, near):
    found = why_not_found(base, folder)
    expected = f"{OFFLINE}; did you mean {near!r}?; where there is a network: hf download {base}"
    assert found == (expected, False)  # it may be on the hub


def test_a_name_unlike_any_other_has_no_hint(folder):
    expected = f"{OFFLINE}; where there is a network: hf download org/other --revision v1"
    assert why_not_found("org/other@v1", folder) == (expected, False)


@pytest.mark.parametrize("base", ["bas", "./bas", "models/../bas"])
def test_a_misspelt_folder_is_none(folder, base):
    (folder / "models").mkdir()
    reason, is_certain = why_not_found(base, folder)
    assert reason.startswith("no such folder; did you mean '") and reason.endswith("base'?")
    assert is_certain


def test_a_file_is_no_folder(folder):
    for base in ("base/config.json", str(folder / "base" / "config.json")):
        assert why_not_found(base, folder) == ("a file; give the folder of the model", True)


def test_a_repository_that_the_hub_does_not_have_is_nowhere(folder, hub_cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", FakeHub(hub_cache).snapshot_download)
    reason = f"neither a folder nor a repository that you may read; did you mean {CODER!r}?"
    assert why_not_found("Qwen/Qwen2.5-Codr-0.5B", folder) == (reason, True)


def test_loading_says_it_in_one_sentence(folder, monkeypatch):
    monkeypatch.chdir(folder)
    expected = "base: expected a transformers folder or hub id, found 'bas': no such folder; "
    for refuse in (check_found, lambda base: load_base(base, dtype=torch.float32, device="cpu")):
        with pytest.raises(ValueError) as raised:
            refuse("bas")
        assert str(raised.value) == f"{expected}did you mean 'base'?"
