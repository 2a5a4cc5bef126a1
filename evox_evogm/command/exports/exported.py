"""What an export says of itself, and what a server needs to know to load it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from evox_evogm.command.licences import LicenceReport
from evox_evogm.command.number_format import is_shown
from evox_evogm.command.uncertainty import standard_error_of_mean
from evox_evogm.resume.journal import to_json

Kind = Literal["adapter", "compressed", "model", "mergekit"]
# What vLLM takes for `--max-lora-rank`.
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
WHAT = {
    "adapter": "the exact adapter",
    "compressed": "a compressed adapter",
    "model": "the merged model",
    "mergekit": "a recipe for mergekit",
}
ByTask = dict[str, float]


class ExportFailed(RuntimeError):
    """An export was written, but the library that reads it loads something else."""


@dataclass(frozen=True)
class Scores:
    """Mean scores with their standard errors, by split and task.

    :param means: by split (`dev`, `test`) and task.
    :param errors: the standard error of each mean over its examples.
    """

    means: dict[str, ByTask]
    errors: dict[str, ByTask]

    def mean(self, split: str) -> float:
        """The mean over tasks; NaN without tasks."""
        values = list(self.means.get(split, {}).values())
        return sum(values) / len(values) if values else math.nan

    def shown_mean(self, split: str) -> str:
        """The mean over tasks and its standard error, where that is known."""
        errors = {}
        for name, error in self.errors.get(split, {}).items():
            errors[name] = math.nan if error is None else float(error)
        error = standard_error_of_mean(errors)
        spread = f" ± {error:.3f}" if is_shown(error) else ""
        return f"{self.mean(split):.3f}{spread}"


@dataclass(frozen=True)
class Exported:
    """A merge in a folder, which was loaded again and compared.

    :param kind: what it is.
    :param folder: where it is.
    :param bytes: of all its files.
    :param dtype: of its weights.
    :param relative_error: by how much its weights differ from the merge, over all modules together
        and relative to what the merge adds to the base (Frobenius norms).
    :param module_errors: the same by module.
    :param rank: the largest of a module; None of what has no ranks.
    :param logits_difference: by how much its logits differ from those of the merge, relative to
        them; NaN if it was not loaded.
    :param scores: of what was loaded.
    :param merge_scores: of the merge itself.
    :param serve_at: how a server loads it from a folder of that name.
    :param notes: what else a reader has to know, a sentence each.
    :param licences: of the parts of the merge.
    """

    kind: Kind
    folder: Path
    bytes: int
    dtype: str
    relative_error: float
    module_errors: dict[str, float]
    rank: int | None
    logits_difference: float
    scores: Scores
    merge_scores: Scores
    serve_at: Callable[[str], str]
    licences: LicenceReport
    notes: tuple[str, ...] = field(default=())

    @property
    def serve(self) -> str:
        """How a server loads it from where it is."""
        return self.serve_at(str(self.folder))

    @property
    def checked(self) -> bool:
        """Whether it was loaded and compared."""
        return not math.isnan(self.logits_difference)

    def as_table(self) -> dict:
        """All of it for a JSON file."""
        table = {
            "kind": self.kind,
            "folder": str(self.folder),
            "bytes": self.bytes,
            "dtype": self.dtype,
            "relative_error": self.relative_error,
            "module_errors": self.module_errors,
            "rank": self.rank,
            "logits_difference": self.logits_difference,
            "scores": self.scores.means,
            "errors": self.scores.errors,
            "merge_scores": self.merge_scores.means,
            "merge_errors": self.merge_scores.errors,
            "serve": self.serve,
            "licences": self.licences.as_table(),
            "notes": list(self.notes),
        }
        return to_json(table)

    def lines(self) -> list[str]:
        """What a user reads when it is done."""
        rank = "" if self.rank is None else f", rank {self.rank}"
        size = f"{shown_bytes(self.bytes)}, {self.dtype}{rank}"
        lines = [f"{WHAT[self.kind]}: {self.folder} ({size})"]
        if self.checked:
            lines.append(
                f"loaded again: weights within {self.relative_error:.1e} of the merge, "
                f"logits within {self.logits_difference:.1e}"
            )
        for split in self.scores.means:
            if not self.scores.means[split]:
                continue
            own, merge = self.scores.shown_mean(split), self.merge_scores.shown_mean(split)
            lines.append(f"mean {split} score {own}, of the merge {merge}")
        lines.append(self.serve)
        fault = self.licences.sentence()
        if fault is not None:
            lines.append(f"licences: {fault}")
        return [*lines, *self.notes]


def server_setting(rank: int) -> str:
    """How vLLM loads an adapter of a rank."""
    for largest in VLLM_RANKS:
        if rank <= largest:
            return f"rank {rank}: vllm serve BASE --enable-lora --max-lora-rank {largest}"
    return (
        f"rank {rank}: more than vLLM takes ({VLLM_RANKS[-1]}); "
        "compress the adapter, or export the merged model"
    )


def server_setting_of(rank: int) -> Callable[[str], str]:
    """`server_setting` in the form of `Exported.serve_at`: it is the same in every folder."""
    return lambda _: server_setting(rank)


def load_adapter(folder: str) -> str:
    """How peft loads an adapter of an encoder-decoder, which vLLM may not serve."""
    return f"AutoPeftModelForSeq2SeqLM.from_pretrained({folder!r})"


def shown_bytes(count: int) -> str:
    """A size as people write it, in powers of 1000."""
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def bytes_in(folder: Path) -> int:
    """The size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
