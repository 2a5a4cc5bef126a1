"""Uploads to the hub, which a stub stands for: nothing goes out."""

import json
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from evox_evogm.command.exports import push_to_hub

CARD = """---
license: mit
merge_licences:
  parts: {base: mit, a: mit}
  conflicts: []
  unknown: []
---

# A merge of LoRA experts
"""


class Hub:
    """Takes the calls that `HfApi` would make, with its signatures."""

    def __init__(self, **repositories):
        self.repositories = repositories  # by name whether it is private
        self.calls = []

    def repo_info(self, repo_id, *, repo_type):
        if repo_id.replace("/", "_") not in self.repositories:
            response = SimpleNamespace(headers={}, request=None)
            error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
            Exception.__init__(error, "404")
            error.response = response
            raise error
        return SimpleNamespace(private=self.repositories[repo_id.replace("/", "_")])

    def create_repo(self, repo_id, *, private, exist_ok, repo_type):
        self.calls.append(("create", repo_id, private, exist_ok, repo_type))
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, folder_path, repo_id, repo_type, commit_message, ignore_patterns):
        self.calls.append(("upload", folder_path, repo_id, repo_type, commit_message))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    config = {"base_model_name_or_path": "org/base", "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_new_repository_is_private(folder):
    hub = Hub()
    assert push_to_hub(folder, "me/merge", api=hub) == "https://hub/me/merge"
    create, upload = hub.calls
    assert create == ("create", "me/merge", True, True, "model")
    assert upload[:4] == ("upload", str(folder), "me/merge", "model")
    assert "evox-evogm" in upload[4]


def test_the_stub_has_the_parameters_of_the_real_one():
    import inspect

    for name in ("repo_info", "create_repo", "upload_folder"):
        stub = set(inspect.signature(getattr(Hub, name)).parameters)
        assert stub <= set(inspect.signature(getattr(HfApi, name)).parameters)


def test_what_was_to_be_private_does_not_go_into_a_public_repository(folder):
    hub = Hub(me_merge=False)
    with pytest.raises(ValueError, match="expected a new or private repository, found me/merge"):
        push_to_hub(folder, "me/merge", api=hub)
    assert hub.calls == []
    push_to_hub(folder, "me/merge", private=False, api=hub)
    push_to_hub(folder, "me/merge", api=Hub(me_merge=True))


@pytest.mark.parametrize("name", ["merge", "a/b/c", "me/", "me/..", "https://hub/me/merge"])
def test_what_is_no_name_is_refused(folder, name):
    hub = Hub()
    with pytest.raises(ValueError, match="repo_id: expected owner/name, found"):
        push_to_hub(folder, name, api=hub)
    assert hub.calls == []


def test_strict_licences_refuse_a_card_with_conflicts_or_unknown_parts(folder):
    card = CARD.replace("unknown: []", "unknown: [a]")
    (folder / "README.md").write_text(card)
    hub = Hub()
    with pytest.raises(ValueError, match="found that the licence of a is unknown"):
        push_to_hub(folder, "me/merge", strict_licences=True, api=hub)
    conflict = "gpl-3.0 (a) and llama3 (base) each ask for their own terms"
    (folder / "README.md").write_text(CARD.replace("conflicts: []", f"conflicts: ['{conflict}']"))
    with pytest.raises(ValueError, match=r"found that gpl-3.0 \(a\) and llama3"):
        push_to_hub(folder, "me/merge", strict_licences=True, api=hub)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    with pytest.raises(ValueError, match="expected a card that says the licences of all parts"):
        push_to_hub(folder, "me/merge", strict_licences=True, api=hub)
    assert hub.calls == []
    (folder / "README.md").write_text(card)
    push_to_hub(folder, "me/merge", api=hub)
    assert len(hub.calls) == 2


def test_a_base_that_only_this_machine_has_is_refused(folder):
    config = {"base_model_name_or_path": "/home/me/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match="expected the hub id of the base .*, found '/home/me/base'"
    ):
        push_to_hub(folder, "me/merge", api=Hub())


def test_a_recipe_names_folders_of_this_machine_and_is_refused(folder):
    (folder / "recipe.yaml").write_text("base_model: /home/me/base\n")
    with pytest.raises(ValueError, match="expected an adapter or a model, found recipe.yaml"):
        push_to_hub(folder, "me/merge", api=Hub())


def test_a_folder_that_is_no_export_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected an export with its README.md, found none"):
        push_to_hub(tmp_path, "me/merge", api=Hub())
    (tmp_path / "README.md").write_text("# Do not use this adapter\n\nit differs\n")
    with pytest.raises(ValueError, match="expected an export that can be used"):
        push_to_hub(tmp_path, "me/merge", api=Hub())


def test_a_model_whose_base_only_this_machine_has_is_refused(folder):
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match="expected the hub id of the base in README.md, found no"):
        push_to_hub(folder, "me/merge", api=Hub())
    (folder / "README.md").write_text(CARD.replace("license: mit", "base_model: org/base"))
    assert push_to_hub(folder, "me/merge", api=Hub()) == "https://hub/me/merge"


def test_strict_licences_refuse_a_card_with_a_licence_of_no_rule(folder):
    card = CARD.replace("unknown: []", "unknown: []\n  unruled: [epl-2.0 (a)]")
    (folder / "README.md").write_text(card)
    with pytest.raises(ValueError, match=r"found that no rule here knows epl-2.0 \(a\)"):
        push_to_hub(folder, "me/merge", strict_licences=True, api=Hub())
