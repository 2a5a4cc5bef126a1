"""A document of the harness as an example of a task."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.harness.source import DocumentTokens, HarnessSource
from evox_evogm.problems.tasks.requests import Case
from evox_evogm.problems.tasks.task import Example


@dataclass(frozen=True)
class HarnessExample(Example):
    """A document.

    :param requests_sha256: a digest of all that it asks.
    :param source: the harness task that it belongs to.
    :param place: among the documents of that task.
    """

    requests_sha256: str = ""
    source: HarnessSource | None = field(default=None, repr=False, compare=False)
    place: int = field(default=0, repr=False)


def source_of(example: Example) -> HarnessSource:
    """The harness task of an example."""
    assert isinstance(example, HarnessExample) and example.source is not None
    return example.source


def place_of(example: Example) -> int:
    """The place of an example among the documents of its harness task."""
    assert isinstance(example, HarnessExample)
    return example.place


def tokens_of(model: LanguageModel, cases: Sequence[Case]) -> list[DocumentTokens]:
    """The requests of each case in tokens."""
    found = []
    for case in cases:
        found.append(source_of(case.example).tokens(model)[place_of(case.example)])
    return found
