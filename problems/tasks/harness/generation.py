"""How answers are generated: what a task of the harness asks for, and where a text stops."""

from collections.abc import Mapping
from typing import NamedTuple

DEFAULT_TOKENS = 256  # of HFLM
# Names of one setting, the first that is given counts.
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# Settings that change nothing where decoding is greedy.
WITHOUT_EFFECT = ("top_p", "top_k", "min_p", "use_cache", "num_return_sequences")


class Generation(NamedTuple):
    """Settings of generated answers. Answers of the same settings share batches.

    :param max_new_tokens: the most tokens.
    :param until: texts before which an answer ends.
    """

    max_new_tokens: int
    until: tuple[str, ...]


def parse_generation(settings: Mapping) -> Generation:
    """What the `generation_kwargs` of a task ask for.

    :raises ValueError: if they ask for anything else than the most likely tokens.
    """
    left = dict(settings)
    lengths = [left.pop(name) for name in LENGTHS if left.get(name) is not None]
    for name in (*LENGTHS, *WITHOUT_EFFECT):
        left.pop(name, None)
    until = left.pop("until", None) or []
    temperature = float(left.pop("temperature", None) or 0.0)
    samples = left.pop("do_sample", None)
    if samples or (samples is None and temperature > 0):
        raise ValueError(
            f"expected greedy decoding, found sampling (do_sample {samples}, "
            f"temperature {temperature:g}), whose score is another one each time"
        )
    for name, value in left.items():
        raise ValueError(
            f"expected greedy decoding with max_gen_toks and until, found {name} {value!r}"
        )
    texts = [until] if isinstance(until, str) else until
    length = int(lengths[0]) if lengths else DEFAULT_TOKENS
    return Generation(length, tuple(text for text in texts if text))
