"""What may be relied on when a base runs batches, and the text configuration of a base."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.configuration_utils import PreTrainedConfig


@dataclass(frozen=True)
class Capabilities:
    """What gives the same as plain passes on this base. `probe.py` finds it out.

    :param share_prefixes: first tokens that several rows share may run once.
    :param pad_after_prefix: padding may stand between a shared prefix and the rest of a row.
    :param drop_rows: rows that ended may leave a batch and its cache.
    :param pad_rows: rows of different length may share a pass.
    :param pad_cached_rows: rows of different length may share a batch that decodes with a cache.
    :param cache: tokens may be decoded with a cache of the earlier ones.
    :param static_cache: such a cache may have its full length from the start.
    :param mix_candidates: rows of different candidates may share a batch.
    :param share_layers: layers below the first adapted one may run once for all candidates.
    :param batch_rows: rows of equal length may share a pass.
    :param positions: the model takes a mask and positions. Needed for rows of different length.
    :param unmerged: experts may be added by hooks.
    :param merged: experts may be added to the weights.
    :param fused_norms: RMSNorms may run as one kernel each, on a GPU. Off until the probe says so.
    :param context: the original context of a RoPE whose frequencies depend on the longest row of a
        batch; None without such a RoPE. It separates the rows of a batch, see `row_kind`.
    :param grows: whether these frequencies change with each token beyond the original context.
    :param notes: what was found, for the log and the report.
    """

    share_prefixes: bool = True
    pad_after_prefix: bool = True
    drop_rows: bool = True
    pad_rows: bool = True
    pad_cached_rows: bool = True
    cache: bool = True
    static_cache: bool = True
    mix_candidates: bool = True
    share_layers: bool = True
    batch_rows: bool = True
    positions: bool = True
    unmerged: bool = True
    merged: bool = True
    fused_norms: bool = False
    context: int | None = None
    grows: bool = False
    notes: tuple[str, ...] = ()

    @property
    def switched_off(self) -> list[str]:
        """The names of what is not relied on."""
        off_by_default = ("grows", "fused_norms")
        named = asdict(self).items()
        return [name for name, value in named if value is False and name not in off_by_default]

    def note(self, text: str) -> "Capabilities":
        """The same with one more note."""
        return replace(self, notes=(*self.notes, text))

    def without(self, *names: str) -> "Capabilities":
        """The same with some of it switched off."""
        changes: dict[str, Any] = dict.fromkeys(names, False)
        return replace(self, **changes)

    def plain(self) -> "Capabilities":
        """One plain pass per question; modes and the context stay."""
        return self.without(
            "share_prefixes",
            "pad_after_prefix",
            "drop_rows",
            "pad_rows",
            "pad_cached_rows",
            "cache",
            "static_cache",
            "mix_candidates",
            "share_layers",
            "batch_rows",
            "positions",
            "fused_norms",
        )

    def row_kind(self, tokens: int, max_new_tokens: int) -> str:
        """Which rows may share a batch with a row under such a RoPE: those of its kind.

        - `"within"`: the row stays within the original context.
        - `"beyond"`: it begins behind it, where the frequencies change no more.
        - `"crossing"`: the frequencies change with its length.

        :param tokens: the number of tokens of the row.
        :param max_new_tokens: how many follow.
        """
        if self.context is None or tokens + max_new_tokens <= self.context:
            return "within"
        if tokens > self.context and not self.grows:
            return "beyond"
        return "crossing"

    def for_kind(self, kind: str) -> "Capabilities":
        """What may be relied on for rows of a kind."""
        if kind == "within":
            return self
        if kind == "beyond":
            return self.without("share_prefixes")
        return self.without("share_prefixes", "pad_rows", "pad_cached_rows", "cache")


def text_config(model: "PreTrainedModel") -> "PreTrainedConfig":
    """The configuration of the decoder of texts, which a multimodal model holds inside its own."""
    return model.config.get_text_config(decoder=True)


def count_layers(model: "PreTrainedModel") -> int | None:
    """The number of decoder layers, or None if the configuration has none."""
    return getattr(text_config(model), "num_hidden_layers", None)


def rope_settings(model: "PreTrainedModel") -> Iterator[Mapping]:
    """The settings of each RoPE of a model."""
    settings = getattr(text_config(model), "rope_parameters", None)
    if not isinstance(settings, Mapping):
        return
    if "rope_type" in settings:
        yield settings
    for value in settings.values():  # one for each type of layers
        if isinstance(value, Mapping) and "rope_type" in value:
            yield value


def changing_context(model: "PreTrainedModel") -> tuple[int | None, bool]:
    """The original context of a RoPE that depends on the longest row, see `Capabilities.context`.

    :return: the context, and whether the frequencies change with each token beyond it.
    """
    contexts = []
    grows = False
    for settings in rope_settings(model):
        rope_type = settings["rope_type"]
        if rope_type != "longrope" and "dynamic" not in rope_type:
            continue
        grows = grows or rope_type != "longrope"
        context = settings.get("original_max_position_embeddings")
        if context is None or rope_type != "longrope":
            context = text_config(model).max_position_embeddings
        contexts.append(context)
    return min(contexts, default=None), grows
