"""A hub's cache on this machine, in the layout of huggingface_hub, and a hub that fills it."""

import hashlib
import inspect
import shutil
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LATER = "fedcba9876543210fedcba9876543210fedcba98"


def add_to_cache(cache, repository, folder, commit=COMMIT, revision="main", files=None):
    """Put the files of a folder into a hub's cache as a snapshot, as huggingface_hub does.

    :param cache: what `HF_HUB_CACHE` names.
    :param repository: owner/name.
    :param revision: the branch or tag that stands for the commit.
    :param files: paths in the folder; all by default.
    :return: the snapshot.
    """
    storage = Path(cache) / f"models--{repository.replace('/', '--')}"
    snapshot = storage / "snapshots" / commit
    for path in sorted(Path(folder).rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or (files is not None and name.as_posix() not in files):
            continue
        blob = storage / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).unlink(missing_ok=True)
        (snapshot / name).symlink_to(blob)
    (storage / "refs").mkdir(parents=True, exist_ok=True)
    (storage / "refs" / revision).write_text(commit)
    return snapshot


class FakeHub:
    """Repositories, of which a stand-in for `snapshot_download` fills a cache.

    :param cache: what `HF_HUB_CACHE` names.
    """

    def __init__(self, cache):
        self.cache = cache
        self.folders = {}  # by repository and commit
        self.revisions = {}  # commits by repository and revision
        self.downloaded = []  # names of files, in order

    def add(self, repository, folder, commit=COMMIT, revision="main"):
        """Have a folder in a repository."""
        self.folders[repository, commit] = Path(folder)
        self.revisions[repository, revision] = self.revisions[repository, commit] = commit

    def snapshot_download(self, repo_id, *, revision=None, allow_patterns, ignore_patterns):
        """As `huggingface_hub.snapshot_download`."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
        from huggingface_hub.utils import filter_repo_objects

        if not any(name == repo_id for name, _ in self.folders):
            raise RepositoryNotFoundError("404", response=FakeResponse())
        commit = self.revisions.get((repo_id, revision or "main"))
        if commit is None:
            raise RevisionNotFoundError("404", response=FakeResponse())
        folder = self.folders[repo_id, commit]
        names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*"))]
        files = [name for name in names if (folder / name).is_file()]
        wanted = list(
            filter_repo_objects(
                files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
            )
        )
        storage = Path(self.cache) / f"models--{repo_id.replace('/', '--')}"
        for name in wanted:
            if not (storage / "snapshots" / commit / name).exists():
                self.downloaded.append(name)
        branch = "main" if revision in (None, commit) else revision
        return str(add_to_cache(self.cache, repo_id, folder, commit, branch, set(wanted)))


class FakeResponse:
    """What errors of the hub show of an answer."""

    status_code, headers, text, url = 404, {}, "", "https://huggingface.co"
    request = None


def check_signature():
    """Refuse a stand-in that takes what huggingface_hub does not."""
    from huggingface_hub import snapshot_download

    real = inspect.signature(snapshot_download).parameters
    for name in inspect.signature(FakeHub.snapshot_download).parameters:
        assert name == "self" or name in real, name
