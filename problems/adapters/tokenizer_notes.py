"""How the tokenizers and chat templates in adapters' folders differ from the base's.

Merges are asked by the tokenizer and the template of the base. An expert that was trained with
another template, or with another token at the end of an answer, is asked in a way that it does not
know. Vocabularies that differ are refused elsewhere (`vocabulary.py`).
"""

import json
from collections.abc import Sequence
from pathlib import Path

from evox_evogm.problems.adapters.read_adapter import Expert
from evox_evogm.problems.adapters.vocabulary import FILE
from evox_evogm.problems.inference.panics import panics_as_errors

SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"  # goes before the one in the settings
ADDED = "added_tokens.json"
ENDS = ("bos_token", "eos_token")  # padding is never attended to
# Text whose tokens tell tokenizers of one vocabulary apart: spaces, digits, case, accents, scripts.
PROBE = "Two  words,\n\n\t12345 x_1 Naïve İstanbul 東京 don't 3.14"


def notes_on_tokenizers(experts: Sequence[Expert], tokenizer) -> list[str]:
    """What to tell about tokenizers and chat templates that differ from the base's, a line each.

    :param experts: those whose folders have no tokenizer are passed over.
    :param tokenizer: the base's; None if it is not known.
    """
    if tokenizer is None:
        return []
    notes = _notes_on_templates(experts, tokenizer)
    for expert in experts:
        where = f"expert {expert.name!r}"
        settings = _read_table(expert.folder / SETTINGS)
        for end in ENDS:
            own, of_base = _content(settings.get(end)), _content(getattr(tokenizer, end, None))
            if own is not None and own != of_base:
                notes.append(f"{where}: its {end} is {own!r}, that of the base is {of_base!r}")
        added = _added_tokens(expert.folder, settings, tokenizer)
        if added:
            notes.append(
                f"{where}: its tokenizer has {len(added)} tokens that the base lacks, such as "
                f"{added[0]!r}"
            )
        if _splits_otherwise(expert.folder, tokenizer):
            notes.append(
                f"{where}: its tokenizer splits text into other tokens than the base's, which is "
                "used"
            )
    return notes


def chat_template_of(folder: Path) -> str | None:
    """The chat template in an adapter's folder, or None."""
    try:
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return _default_template(_read_table(folder / SETTINGS).get("chat_template"))


def _notes_on_templates(experts: Sequence[Expert], tokenizer) -> list[str]:
    of_base = _default_template(getattr(tokenizer, "chat_template", None))
    differing = []
    for expert in experts:
        own = chat_template_of(expert.folder)
        if own is not None and own.strip() != (of_base or "").strip():
            differing.append(expert.name)
    if not differing:
        return []
    names = ", ".join(differing)
    advice = "chat_template_file takes the folder of an expert"
    if of_base is None:
        return [f"chat template: found one with {names}, and none with the base; {advice}"]
    used = "which tasks with chat: true are asked by"
    return [f"chat template: that of {names} differs from that of the base, {used}; {advice}"]


def _default_template(template) -> str | None:
    """The default template of a setting that may hold several by name."""
    if isinstance(template, list):
        by_name = {}
        for entry in template:
            if isinstance(entry, dict) and isinstance(entry.get("name"), str):
                by_name[entry["name"]] = entry.get("template")
        template = by_name
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None


def _added_tokens(folder: Path, settings: dict, tokenizer) -> list[str]:
    """The tokens that a tokenizer has besides those of the base, where no full list is there."""
    if (folder / FILE).is_file():  # compared as a whole, and refused
        return []
    added = list(_read_table(folder / ADDED))
    decoder = settings.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        added += [str(_content(entry)) for entry in decoder.values()]
    known = tokenizer.get_vocab()
    return sorted({token for token in added if token not in known})


def _splits_otherwise(folder: Path, tokenizer) -> bool:
    """Whether a tokenizer in an adapter's folder makes other tokens of a text than the base's."""
    from tokenizers import Tokenizer

    if not (folder / FILE).is_file():
        return False
    try:
        with panics_as_errors():
            own = Tokenizer.from_file(str(folder / FILE))
            own.no_truncation()
            own.no_padding()
            ids = own.encode(PROBE, add_special_tokens=False).ids
    except Exception:  # the library raises plain Exception; reading it was tried before
        return False
    return ids != list(tokenizer(PROBE, add_special_tokens=False)["input_ids"])


def _content(token) -> str | None:
    """The text of a token, which may stand in a table or be an `AddedToken`."""
    if isinstance(token, dict):
        token = token.get("content")
    return None if token is None else str(token)


def _read_table(path: Path) -> dict:
    """The table in a JSON file; an empty one where there is none that can be read."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}
