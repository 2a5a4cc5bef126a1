"""Adapters and bases on the hub: their names, and their files in the hub's cache.

A name is an address of huggingface_hub, with or without `hf://`: `owner/name`,
`owner/name@revision`, and `owner/name@revision/folder` for a folder of the repository. Only the
files that are needed are downloaded, by huggingface_hub, which keeps them and knows
`HF_HUB_OFFLINE` and `HF_TOKEN`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from urllib.parse import unquote

from evox_evogm.problems.adapters.same_base import LOCAL_PARENT, SNAPSHOT

NAME = re.compile(
    r"(hf://)?(?P<owner>\w[\w.-]*)/(?P<name>\w[\w.-]*)"
    r"(@(?P<revision>refs/(convert|pr)/[^/]+|[^/@]+))?(/(?P<folder>[^@\\]+?))?/?"
)
# Where people keep adapters: `experts/one` is a relative path, though it looks like a hub id.
LOCAL_ADAPTERS = re.compile(r"experts?|adapters?|loras?|saves?|swift")
# What lies beside weights in a repository and is read too.
BESIDE = (
    "README.md",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "trainer_state.json",
    "LICENSE*",
    "/README.md",
    "/LICENSE*",
)
SHOWN = 12  # digits of a commit
SCHEME = "hf://"  # before a name that stands for the hub also where a folder is called so


@dataclass(frozen=True)
class HubSource:
    """A folder of a repository.

    :param repository: owner/name.
    :param folder: in it, with `/`; empty for all of it.
    :param revision: a branch, a tag or a commit; None for the main branch.
    """

    repository: str
    folder: str = ""
    revision: str | None = None

    def __str__(self):
        revision = "" if self.revision is None else f"@{self.revision}"
        if "/" in revision and not revision.startswith("@refs/"):
            revision = revision.replace("/", "%2F")
        folder = f"/{self.folder}" if self.folder else ""
        return f"{self.repository}{revision}{folder}"

    def inside(self, folder: str) -> "HubSource":
        """A folder of this one; `.` is this one."""
        if folder in ("", "."):
            return self
        return replace(self, folder=f"{self.folder}/{folder}" if self.folder else folder)

    @property
    def at_revision(self) -> str:
        """The repository and the revision, without the folder."""
        return str(replace(self, folder=""))

    def pinned(self, commits: Mapping[str, str]) -> "HubSource":
        """The same at the commit that is known of its revision, if one is.

        :param commits: by `at_revision`.
        """
        return replace(self, revision=commits.get(self.at_revision, self.revision))


def parse_hub_source(text: str, folder: Path = Path()) -> HubSource | None:
    """The folder of a repository that a name stands for, or None if it is a path.

    :param text: a hub id, or a path.
    :param folder: the folder that relative paths start from. What is there wins.
    """
    found = NAME.fullmatch(text)
    if found is None:
        return None
    if not text.startswith(SCHEME):
        owner = found["owner"].lower()
        local = LOCAL_PARENT.fullmatch(owner) or LOCAL_ADAPTERS.fullmatch(owner)
        if local or (folder / found["owner"]).is_dir() or (folder / text).exists():
            return None
    inside = found["folder"] or ""
    if ".." in inside.split("/") or ".." in found["name"] or "--" in found["name"]:
        return None
    revision = None if found["revision"] is None else unquote(found["revision"])
    return HubSource(f"{found['owner']}/{found['name']}", inside, revision)


def name_like(source: HubSource, text: str) -> str:
    """A source as text, with `hf://` where the name has it that it was made of."""
    return f"{SCHEME if text.startswith(SCHEME) else ''}{source}"


def source_of_folder(folder) -> HubSource | None:
    """What a folder of the hub's cache is, at its commit; None of any other folder."""
    found = SNAPSHOT.search(str(folder))
    if found is None:
        return None
    repository = found["repository"].replace("--", "/", 1)
    inside = found["folder"].replace("\\", "/").strip("/")
    return HubSource(repository, inside, found["commit"])


def shown_source(source: HubSource) -> str:
    """A source with the first digits of its commit."""
    return str(replace(source, revision=(source.revision or "")[:SHOWN] or None))


def fetch(
    source: HubSource, patterns: Sequence[str], where: str, ignore: Sequence[str] = ()
) -> Path:
    """Have files of a repository in the hub's cache.

    :param source: whose folder the patterns are in.
    :param patterns: of the files, `*` for any characters. One that begins with `/` belongs to
        the top of the repository.
    :param where: what the files are for, as error messages name it.
    :param ignore: likewise, of files that are left out.
    :return: the snapshot, the top of the repository. Without a network it may lack files.
    :raises ValueError: in one sentence that names the repository and says what to do.
    """
    from huggingface_hub import snapshot_download

    try:
        snapshot = snapshot_download(
            source.repository,
            revision=source.revision,
            allow_patterns=_from_the_top(source, patterns),
            ignore_patterns=_from_the_top(source, ignore),
        )
    except Exception as error:  # each layer below raises its own
        partial = getattr(error, "snapshot_path", None)  # some files are there, and no network is
        if partial is not None:
            return Path(partial)
        raise ValueError(f"{where}: {_reason(source, error)}") from error
    return Path(snapshot)


def _from_the_top(source: HubSource, patterns: Sequence[str]) -> list[str]:
    """Patterns of files in a folder as patterns of files of its repository."""
    found = []
    for pattern in patterns:
        inside = f"{escape(source.folder)}/{pattern}" if source.folder else pattern
        found.append(pattern[1:] if pattern.startswith("/") else inside)
    return found


def snapshot_of(folder) -> Path | None:
    """The top of the repository whose snapshot a folder is in, in the hub's cache, or None."""
    found = SNAPSHOT.search(str(folder))
    return None if found is None else Path(str(folder)[: found.end("commit")])


def how_to_download(source: HubSource) -> str:
    """The command that has a repository in the cache."""
    revision = "" if source.revision is None else f" --revision {source.revision}"
    return f"hf download {source.repository}{revision}"


def is_offline() -> bool:
    """Whether huggingface_hub was told to use its cache only."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _reason(source: HubSource, error: Exception) -> str:
    """Why files could not be had, and what to do."""
    from huggingface_hub import errors

    name = source.repository
    if isinstance(error, errors.GatedRepoError):
        return (
            f"expected a repository that you may read, found that {name} asks to accept its "
            f"terms; do so on https://huggingface.co/{name}, and hf auth login"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"expected a branch, a tag or a commit of {name}, found none that is called "
            f"{source.revision!r}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"expected a folder or a hub id, found neither a folder {str(source)!r} nor a "
            f"repository {name} that you may read; correct the name, or hf auth login"
        )
    if isinstance(error, (errors.LocalEntryNotFoundError, OSError)):
        why = "HF_HUB_OFFLINE is set" if is_offline() else "the hub cannot be reached"
        return (
            f"expected a folder or a hub id, found neither a folder {str(source)!r} nor {name} in "
            f"the hub's cache, and {why}; where there is a network: {how_to_download(source)}"
        )
    found = " ".join(str(error).split()) or type(error).__name__
    return f"expected files of {source} from the hub, found {found}"
