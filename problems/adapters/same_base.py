"""Whether several names may stand for one base model.

A base has a hub id, a snapshot of it in the hub's cache, local copies in folders of any name, and
quantised copies with names of their own. So a name is a hint and no proof. Two names contradict
each other only if both are hub ids, and each has a word that the other lacks.
"""

import re
from collections.abc import Iterable
from pathlib import Path

SNAPSHOT = re.compile(r"(?:^|[/\\])models--(?P<id>[^/\\]+)[/\\]snapshots[/\\]")
# What a copy of a base adds to its name: how it is stored, and who made the copy.
COPY_WORD = re.compile(
    r"bnb|gptq|awq|gguf|exl2|hqq|aqlm|eetq|marlin|nf4|fp(4|8|16|32)|bf16|int[248]|[2-8]bits?|"
    r"w\d+a\d+|g(32|64|128)|q\d+|quanti[sz]ed|dynamic|unsloth|mlx|meta|hf"
)
# Where people keep models: `models/base` is a relative path, though it looks like a hub id.
LOCAL_PARENT = re.compile(
    r"\.{1,2}|models?|bases?|checkpoints?|ckpts?|weights?|outputs?|out|runs?|results?|data|saved?|"
    r"downloads?|tmp|home|mnt|work|cache|pretrained|experiments?|trained|merged|local"
)


def hub_id(base: str) -> str | None:
    """The hub id that a name of a base stands for, or None if it is a path.

    :param base: a hub id, a path, or the path of a snapshot in the hub's cache.
    """
    snapshot = SNAPSHOT.search(base)
    if snapshot:
        return snapshot["id"].replace("--", "/", 1)
    looks_like_id = re.fullmatch(r"(?P<owner>[\w.-]+)/[\w.-]+", base)
    if looks_like_id is None or LOCAL_PARENT.fullmatch(looks_like_id["owner"].lower()):
        return None
    return None if Path(base).exists() else base


def last_part(base: str) -> str:
    """The last part of a path or hub id, in lower case: local copies often keep it."""
    name = hub_id(base) or base
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower()


def words_of(base: str) -> frozenset[str]:
    """The words and numbers in a name, without those that a copy adds.

    `Meta-Llama-3.1-8B-bnb-4bit` has the same as `Llama-3.1-8B`: llama, 3.1, 8 and b.
    """
    words: set[str] = set()
    for part in re.split(r"[-_\s]+", last_part(base)):
        if not COPY_WORD.fullmatch(part):
            words.update(re.findall(r"[^\W\d]+|\d+(?:\.\d+)*", part))
    return frozenset(words)


def contradict(one: str, other: str) -> bool:
    """Whether two names say that they stand for different bases."""
    if hub_id(one) is None or hub_id(other) is None:
        return False
    own_words, other_words = words_of(one), words_of(other)
    return not (own_words <= other_words or other_words <= own_words)


def note_on_names(bases: Iterable[str]) -> str | None:
    """What to tell where one base has names that differ, or None.

    :param bases: the names of one base, in any order; an empty one says nothing.
    """
    names: dict[str, str] = {}  # by what they stand for
    for base in bases:
        if base:
            identity = hub_id(base) or last_part(base)
            names.setdefault(identity.lower(), base)
    # A local copy that keeps the name of its hub id tells nothing new.
    ends = {last_part(name) for name in names.values()}
    hub_ids = [name for name in names.values() if hub_id(name) is not None]
    if len(ends) < 2 and len(hub_ids) < 2:
        return None
    return (
        f"base: took {', '.join(names.values())} for one base model; "
        "its modules, shapes and vocabulary agree with all adapters"
    )
