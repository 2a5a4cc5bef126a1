"""Hub ids are told from paths, and what the hub does not give is said in one sentence."""

import huggingface_hub
import pytest
from fake_hub import COMMIT, FakeHub, FakeResponse, add_to_cache, check_signature
from huggingface_hub import errors

from evox_evogm.problems.adapters.hub_source import (
    HubSource,
    fetch,
    parse_hub_source,
    snapshot_of,
    source_of_folder,
)

SOURCE = HubSource("org/loras", "experts/code", "v1")


@pytest.mark.parametrize(
    ("text", "repository", "folder", "revision"),
    [
        ("org/loras", "org/loras", "", None),
        ("org/loras@v1", "org/loras", "", "v1"),
        ("org/loras/experts/code", "org/loras", "experts/code", None),
        ("org/loras@v1/experts/code/", "org/loras", "experts/code", "v1"),
        ("org/loras@refs/pr/3/code", "org/loras", "code", "refs/pr/3"),
        ("org/loras@feature%2Fx", "org/loras", "", "feature/x"),
        ("hf://org/loras@v1/code", "org/loras", "code", "v1"),
        ("hf://experts/code", "experts/code", "", None),
    ],
)
def test_names_are_those_of_the_hubs_own_addresses(text, repository, folder, revision):
    found = parse_hub_source(text)
    assert found == HubSource(repository, folder, revision)
    if not text.startswith("hf://experts"):
        assert parse_hub_source(str(found)) == found
    if hasattr(huggingface_hub, "parse_hf_uri"):  # new in version 2
        uri = huggingface_hub.parse_hf_uri(f"hf://{text.removeprefix('hf://').rstrip('/')}")
        assert (uri.id, uri.path_in_repo, uri.revision) == (repository, folder, revision)


@pytest.mark.parametrize(
    "text",
    [
        "code",
        "/data/code",
        "./org/code",
        "../org/code",
        "org/../code",
        "org/loras/../../etc",
        "experts/code",
        "outputs/run",
        "my-adapters/code",
        "org\\loras",
        "org/loras/code@v1",
        "",
    ],
)
def test_paths_are_no_names_of_the_hub(text, tmp_path):
    (tmp_path / "my-adapters").mkdir()
    assert parse_hub_source(text, tmp_path) is None


def test_a_folder_of_the_same_spelling_wins(tmp_path):
    assert parse_hub_source("org/loras", tmp_path) is not None
    (tmp_path / "org" / "loras").mkdir(parents=True)
    assert parse_hub_source("org/loras", tmp_path) is None


def test_a_folder_of_the_cache_is_known_with_its_commit(tmp_path, hub_cache):
    (tmp_path / "files" / "code").mkdir(parents=True)
    (tmp_path / "files" / "code" / "a.txt").write_text("a")
    snapshot = add_to_cache(hub_cache, "org/lo-ras", tmp_path / "files")
    assert source_of_folder(snapshot / "code") == HubSource("org/lo-ras", "code", COMMIT)
    assert source_of_folder(snapshot) == HubSource("org/lo-ras", "", COMMIT)
    assert snapshot_of(snapshot / "code") == snapshot
    assert source_of_folder(tmp_path) is None and snapshot_of(tmp_path) is None
    windows = f"C:\\hub\\models--org--loras\\snapshots\\{COMMIT}\\experts\\code"
    assert source_of_folder(windows) == HubSource("org/loras", "experts/code", COMMIT)


def test_what_is_in_the_cache_is_read_from_there(tmp_path, hub_cache):
    (tmp_path / "files" / "code").mkdir(parents=True)
    (tmp_path / "files" / "code" / "a.txt").write_text("a")
    snapshot = add_to_cache(hub_cache, "org/loras", tmp_path / "files", revision="v1")
    assert fetch(HubSource("org/loras", "code", "v1"), ["*.txt"], "here") == snapshot


def test_patterns_belong_to_the_folder_or_to_the_top(monkeypatch):
    check_signature()
    asked = {}

    def snapshot_download(repo_id, *, revision, allow_patterns, ignore_patterns):
        asked.update(repo=repo_id, revision=revision, allow=allow_patterns, ignore=ignore_patterns)
        return "/snapshot"

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    source = HubSource("org/loras", "a[1]", "v1")
    fetch(source, ["*.json", "/README.md"], "here", ignore=["*/*"])
    assert asked == {
        "repo": "org/loras",
        "revision": "v1",
        "allow": ["a[[]1]/*.json", "README.md"],
        "ignore": ["a[[]1]/*/*"],
    }


def test_what_is_not_there_is_said_with_what_to_do(hub_cache):
    message = (
        "^here: expected a folder or a hub id, found neither a folder 'org/loras@v1/experts/code' "
        "nor org/loras in the hub's cache, and HF_HUB_OFFLINE is set; where there is a network: "
        "hf download org/loras --revision v1$"
    )
    with pytest.raises(ValueError, match=message):
        fetch(SOURCE, ["*"], "here")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            errors.RepositoryNotFoundError("404", response=FakeResponse()),
            "nor a repository org/loras that you may read; correct the name, or hf auth login",
        ),
        (
            errors.GatedRepoError("403", response=FakeResponse()),
            "found that org/loras asks to accept its terms; do so on "
            "https://huggingface.co/org/loras, and hf auth login",
        ),
        (
            errors.RevisionNotFoundError("404", response=FakeResponse()),
            "expected a branch, a tag or a commit of org/loras, found none that is called 'v1'",
        ),
        (ConnectionError("no route"), "and the hub cannot be reached; where there is a network: "),
        (ValueError("odd\nthing"), "from the hub, found odd thing"),
    ],
)
def test_errors_of_the_hub_are_one_sentence(error, message, monkeypatch):
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ValueError, match="here: ") as caught:
        fetch(SOURCE, ["*"], "here")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_without_a_network_files_that_are_missing_are_left_to_who_needs_them(monkeypatch):
    """huggingface_hub says that a snapshot is not whole, although what is needed may be there."""
    error = errors.LocalEntryNotFoundError("some are missing")
    error.snapshot_path = "/snapshot"

    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert str(fetch(SOURCE, ["*"], "here")) == "/snapshot"


def test_the_stand_in_downloads_what_is_asked_for(tmp_path, hub_cache):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.bin").write_text("")
    hub = FakeHub(hub_cache)
    hub.add("org/loras", tmp_path)
    snapshot = hub.snapshot_download("org/loras", allow_patterns=["*.json"], ignore_patterns=[])
    assert hub.downloaded == ["a.json"] and source_of_folder(snapshot).revision == COMMIT
