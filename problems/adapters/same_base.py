"""Whether several names may stand for one base model.

A base has a hub id, a snapshot of it in the hub's cache, local copies in folders of any name, and
quantized copies with names of their own. So a name is a hint and no proof. Two names contradict
each other only if both are hub ids, and each has a word that the other lacks. Then the user is
warned, and the merge goes on: whether adapters fit a base is decided by what can be compared.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

# A folder of the hub's cache: the repository, the commit, and the folder in it.
SNAPSHOT = re.compile(
    r"(?:^|[/\\])models--(?P<repository>[^/\\]+)[/\\]snapshots[/\\](?P<commit>[^/\\]+)"
    r"[/\\]?(?P<folder>.*)"
)
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
    if snapshot:  # a folder in it is another thing than its repository
        return None if snapshot["folder"] else snapshot["repository"].replace("--", "/", 1)
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


def first_contradiction(bases: Sequence[str]) -> tuple[int, int] | None:
    """The places of the first two names that contradict each other, or None."""
    for later, name in enumerate(bases):
        for earlier in range(later):
            if contradict(bases[earlier], name):
                return earlier, later
    return None


def note_on_names(bases: Iterable[str]) -> str | None:
    """What to tell where one base has names that differ, or None.

    :param bases: the names of one base, in any order; an empty one says nothing.
    """
    names: dict[str, str] = {}  # by what they stand for
    for base in bases:
        if base:
            identity = hub_id(base) or last_part(base)
            names.setdefault(identity.lower(), _printable(base))
    # A local copy that keeps the name of its hub id tells nothing new.
    ends = {last_part(name) for name in names.values()}
    hub_ids = [name for name in names.values() if hub_id(name) is not None]
    if len(ends) < 2 and len(hub_ids) < 2:
        return None
    return (
        f"base: took {', '.join(names.values())} for one base model; "
        "its modules, shapes and vocabulary agree with all adapters"
    )


def warning_on_names(named: Sequence[tuple[str, str]]) -> str | None:
    """What to tell where names of one base contradict each other, or None.

    :param named: who names the base, and the name. All of them fit one base.
    """
    bases = [base for _, base in named]
    pair = first_contradiction(bases)
    if pair is None:
        return None
    (one, own_base), (other, other_base) = (named[place] for place in pair)
    own_base, other_base = _printable(own_base), _printable(other_base)
    return (
        f"{note_on_names(bases)}, but {own_base} ({one}) and {other_base} ({other}) are probably "
        "different models, and adapters that were trained on different models may merge badly; "
        "leave out those of another base, or set same_base to true if these names stand for one"
    )


def name_in_export(base: str, adapters: Iterable[str], folder: Path = Path()) -> str:
    """The name of the base in an exported adapter, from which plain peft loads the base.

    :param base: the name or path that the base was loaded by; empty if it has none.
    :param adapters: the names of the base in the merged adapters.
    :param folder: the folder that relative paths start from.
    :return: a hub id where the base was loaded by one, or where the adapters have just one. Else
        the path of the base.
    """
    own_id = hub_id(base)
    if own_id is not None:
        return own_id
    named = [name for name in adapters if name]
    ids: dict[str, str] = {}
    for name in named:
        adapter_id = hub_id(name)
        if adapter_id is not None and not (folder / adapter_id).exists():
            ids.setdefault(adapter_id.lower(), adapter_id)
    if len(ids) == 1:
        (only_id,) = ids.values()
        return only_id
    return base or next(iter(named), "")


def _printable(name: str) -> str:
    """A name from a file without characters that steer a terminal; of the hub as it is there."""
    snapshot = SNAPSHOT.search(name)
    if snapshot:
        name = f"{snapshot['repository'].replace('--', '/', 1)}/{snapshot['folder']}".rstrip("/")
    return "".join(char if char.isprintable() else " " for char in name)
