"""Which mode evaluates the candidates of a task sooner: measured rates, times the passes that the task makes.

Unmerged, the candidates share batches of the one base, at the cost of the experts' channels in every token. Merged, every
token costs what it costs in the base, but each candidate is put into the weights first and fills its batches alone. The passes
are counted by scoring the task with a model that computes nothing; the rates of passes are measured on the real one.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from evox_evogm.problems.adapters.merging import StackedModule, WeightMerger, merged
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.metrics import score_tasks
from evox_evogm.problems.tasks.task import Task

MODES = ("unmerged", "merged")
PROMPTS = (4, 48)  # rows of WIDTH tokens that are timed as a prompt
STEPS = (2, 32)  # rows that are timed as a step of decoding
WIDTH = 32
REPEATS = 2


@dataclass(frozen=True)
class Rate:
    """The seconds of a forward pass: so many per pass, and so many per token in it."""

    per_pass: float
    per_token: float

    def seconds(self, sizes: Sequence[float]) -> float:
        """Of several passes with these numbers of tokens."""
        return self.per_pass * len(sizes) + self.per_token * sum(sizes)


@dataclass(frozen=True)
class Rates:
    """What was measured: prompts and decoding by mode, and the seconds that putting a candidate into the weights takes."""

    prompts: Mapping[str, Rate]
    steps: Mapping[str, Rate]
    load: float


@dataclass(frozen=True)
class Passes:
    """The tokens of every pass over prompts, and of every step of decoding."""

    prompts: tuple[float, ...]
    steps: tuple[float, ...]


class CountingModel(LanguageModel):
    """A language model that notes its passes instead of making them.

    Every answer is wrong from its first token, a punctuation mark, and goes on to the last token allowed.
    """

    def __init__(self, model: LanguageModel):
        self.__dict__.update(model.__dict__)
        self.prompts: list[float] = []
        self.steps: list[float] = []
        self._logits = torch.zeros(1, model.model.get_output_embeddings().weight.shape[0])
        self._logits[0, self._punctuation_mark()] = 1.0

    def _punctuation_mark(self) -> int:
        """A token that ends no text, and that no right answer is likely to begin with."""
        tokens = (token for token in range(self._logits.shape[1]) if token != self.end_token)
        return next(
            (token for token in tokens if self.decode([token]).strip() in set("!#$%&*;@^|~")), 0
        )

    def _pad_left(self, rows):
        tokens, mask = super()._pad_left(rows)
        return tokens.cpu(), mask.cpu()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def _forward(self, candidates, tokens, mask, scored, cache=None, back=0):
        step = cache is not None and tokens.shape[1] == 1
        size = float(tokens.numel())
        if self._shared_layers and cache is None:
            different = len({tuple(row) for row in tokens.tolist()})
            depth = self.model.config.num_hidden_layers
            size -= (len(tokens) - different) * tokens.shape[1] * self._shared_layers / depth
        (self.steps if step else self.prompts).append(size)
        return self._logits.expand(sum(scored), -1)


def count_passes(
    tasks: Sequence[Task],
    model: LanguageModel,
    candidates: int | None = None,
    shared_layers: int = 0,
) -> Passes:
    """The passes that scoring some tasks makes, if no answer is cut short.

    :param candidates: how many share them; None for one that goes alone.
    :param shared_layers: how many of the first decoder layers run once for the candidates; their tokens count in part.
    """
    counting, count = CountingModel(model), candidates or 1
    margins = {task.name: torch.zeros(count, len(task.examples)) for task in tasks}
    with counting.candidates(lambda *_: None, shared_layers):
        score_tasks(tasks, counting, count, margins)
    return Passes(tuple(counting.prompts), tuple(counting.steps))


def predict(
    rates: Rates,
    tasks: Sequence[Task],
    model: LanguageModel,
    candidates: int,
    shared_layers: int = 0,
) -> dict[str, float]:
    """Seconds that each mode takes to score some tasks for some candidates, once the weights are those of a candidate."""
    together, alone = (
        count_passes(tasks, model, candidates, shared_layers),
        count_passes(tasks, model),
    )
    unmerged = rates.prompts["unmerged"].seconds(together.prompts) + rates.steps[
        "unmerged"
    ].seconds(together.steps)
    merged_alone = rates.prompts["merged"].seconds(alone.prompts) + rates.steps["merged"].seconds(
        alone.steps
    )
    return {"unmerged": unmerged, "merged": candidates * merged_alone}


@torch.no_grad()
def measure_rates(
    model: LanguageModel, modules: Mapping[str, StackedModule], merger: WeightMerger, n: int
) -> Rates:
    """Time both paths on random tokens: some seconds for a small model.

    :param n: the number of experts.
    """
    pop = torch.full((2, n), 0.5)
    try:
        put = _least_seconds(lambda: merger.load(pop[0]), model.device)
        in_weights = _mode_rates(model)
    finally:
        merger.restore()
    with merged(model.model, dict(modules), pop) as population, model.candidates(population.select):
        unmerged = _mode_rates(model)
    return Rates(
        {"unmerged": unmerged[0], "merged": in_weights[0]},
        {"unmerged": unmerged[1], "merged": in_weights[1]},
        load=put,
    )


def _mode_rates(model: LanguageModel) -> tuple[Rate, Rate]:
    """The rates of prompts and of steps, with the model as it is."""
    from transformers import DynamicCache

    generator = torch.Generator().manual_seed(0)
    points: dict[str, list[tuple[int, float]]] = {"prompts": [], "steps": []}
    for rows in sorted({max(1, min(rows, model.batch_tokens // WIDTH)) for rows in PROMPTS}):
        tokens = torch.randint(model.tokenizer.vocab_size, (rows, WIDTH), generator=generator).to(
            model.device
        )
        mask, asked = torch.ones_like(tokens), [row % 2 for row in range(rows)]

        def prompt(asked=asked, tokens=tokens, mask=mask):
            model._forward(asked, tokens, mask, [1] * len(asked))

        points["prompts"].append((tokens.numel(), _least_seconds(prompt, model.device)))
    for rows in STEPS:
        tokens = torch.randint(model.tokenizer.vocab_size, (rows, WIDTH), generator=generator).to(
            model.device
        )
        asked, cache = [row % 2 for row in range(rows)], DynamicCache(config=model.model.config)
        model._forward(asked, tokens, torch.ones_like(tokens), [0] * rows, cache)

        def step(asked=asked, tokens=tokens[:, :1], cache=cache):
            mask = tokens.new_ones(len(asked), cache.get_seq_length() + 1)
            model._forward(asked, tokens, mask, [1] * len(asked), cache)

        points["steps"].append((rows, _least_seconds(step, model.device)))
    return _line(points["prompts"]), _line(points["steps"])


def _line(points: Sequence[tuple[int, float]]) -> Rate:
    """The rate through two measured sizes, with neither part below 0."""
    (few, less), (many, more) = points[0], points[-1]
    if few == many:
        return Rate(0.0, less / few)
    per_token = max(0.0, (more - less) / (many - few))
    return Rate(max(0.0, less - per_token * few), per_token)


def _least_seconds(work: Callable[[], None], device: torch.device) -> float:
    """The shortest of some runs after one that does not count."""
    seconds = []
    for _ in range(1 + REPEATS):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
