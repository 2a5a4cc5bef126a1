"""Which evaluation mode scores the candidates of a task sooner: measured rates times the passes
that the task makes.

- Unmerged, the candidates share batches of the one base. Every token also pays for the channels of
  the experts.
- Merged, every token costs what it costs in the base. But each candidate is put into the weights
  first, and fills its batches alone.

The passes are counted by scoring the task with a forward pass that computes nothing. The rates are
measured on the real model.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.adapters.stacked_modules import StackedModule
from evox_evogm.problems.adapters.weight_merger import WeightMerger
from evox_evogm.problems.inference.capabilities import count_layers
from evox_evogm.problems.inference.device_clock import synchronize
from evox_evogm.problems.inference.forward import Forward
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.metrics import score_tasks
from evox_evogm.problems.tasks.task import Task

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

Points = list[tuple[int, float]]  # the tokens and the seconds of passes, the smallest first
MODES = ("unmerged", "merged")
PROMPT_ROWS = (4, 48)  # rows of a pass over prompts that is timed
STEP_ROWS = (2, 32)  # rows of a decoding step that is timed
WIDTH = 32  # tokens of each row
ROUNDS = 2  # of both modes in turn, so that a busy moment of the machine does not slow one alone


@dataclass(frozen=True)
class Rate:
    """The seconds of a forward pass.

    :param per_pass: seconds of each pass, whatever its size.
    :param per_token: seconds of each token in it.
    """

    per_pass: float
    per_token: float

    def seconds(self, sizes: Sequence[float]) -> float:
        """The seconds of several passes.

        :param sizes: the number of tokens of each.
        """
        return self.per_pass * len(sizes) + self.per_token * sum(sizes)


@dataclass(frozen=True)
class Passes:
    """The sizes of forward passes, in tokens.

    :param prompts: of each pass over prompts.
    :param steps: of each step of decoding.
    """

    prompts: tuple[float, ...]
    steps: tuple[float, ...]


@dataclass(frozen=True)
class Rates:
    """What was measured.

    :param prompts: the rate of passes over prompts, by mode.
    :param steps: the rate of decoding steps, by mode.
    :param load: the seconds to put a candidate into the weights.
    """

    prompts: Mapping[str, Rate]
    steps: Mapping[str, Rate]
    load: float

    def seconds(self, mode: str, passes: Passes) -> float:
        """The seconds of some passes in a mode."""
        return self.prompts[mode].seconds(passes.prompts) + self.steps[mode].seconds(passes.steps)


class CountingForward(Forward):
    """A forward pass that notes its size and computes nothing.

    Every token that it predicts is the same one.

    :param model: the language model, for the number of its layers and the size of its vocabulary.
    :param predicted_token: the token that it predicts.
    :param shared_layers: how many of the first decoder layers run once for all candidates. Tokens
        that agree between candidates count in part.
    """

    def __init__(self, model: "PreTrainedModel", predicted_token: int, shared_layers: int = 0):
        super().__init__(model, shared_layers=shared_layers)
        self.prompts: list[float] = []
        self.steps: list[float] = []
        vocabulary = model.get_output_embeddings().weight.shape[0]
        self.logits = torch.zeros(1, vocabulary)
        self.logits[0, predicted_token] = 1.0

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def __call__(
        self,
        candidates: Sequence[int],
        tokens: torch.Tensor,
        mask: torch.Tensor,
        scored: Sequence[int],
        cache: "Cache | None" = None,
        target_offset: int = 0,
    ) -> torch.Tensor:
        rows, width = tokens.shape
        size = float(rows * width)
        if self.shared_layers and cache is None:
            different = len(tokens.unique(dim=0))
            depth = count_layers(self.model)
            assert depth is not None, "layers that are shared have been counted"
            size -= (rows - different) * width * self.shared_layers / depth
        if cache is not None and width == 1:
            self.steps.append(size)
        else:
            self.prompts.append(size)
        return self.logits.expand(sum(scored), -1)


def count_passes(
    tasks: Sequence[Task], model: LanguageModel, candidates: int = 1, shared_layers: int = 0
) -> Passes:
    """The passes that scoring some tasks makes, if every answer is wrong and none is cut short.

    :param candidates: P, how many share the passes: all in the unmerged mode, one in the merged.
    :param shared_layers: how many of the first decoder layers run once for the candidates. Their
        tokens count in part.
    """
    forward = CountingForward(model.model, punctuation_mark(model), shared_layers)
    margins = {task.name: torch.zeros(candidates, len(task.examples)) for task in tasks}
    score_tasks(tasks, model.with_forward(forward), candidates, margins)
    return Passes(tuple(forward.prompts), tuple(forward.steps))


def punctuation_mark(model: LanguageModel) -> int:
    """A token that ends no text, and that no right answer is likely to begin with."""
    vocabulary = model.model.get_output_embeddings().weight.shape[0]
    for token in range(vocabulary):
        if token != model.end_token and model.decode([token]).strip() in set("!#$%&*;@^|~"):
            return token
    return 0


def predict(
    rates: Rates,
    tasks: Sequence[Task],
    model: LanguageModel,
    candidates: int,
    shared_layers: int = 0,
) -> dict[str, float]:
    """Seconds that scoring some tasks takes, by mode, without the time to load candidates.

    :param candidates: P, how many are scored.
    :param shared_layers: how many of the first decoder layers are the same for all candidates.
    """
    together = count_passes(tasks, model, candidates, shared_layers)
    alone = count_passes(tasks, model)
    return {
        "unmerged": rates.seconds("unmerged", together),
        "merged": candidates * rates.seconds("merged", alone),
    }


@torch.no_grad()
def measure_rates(
    model: LanguageModel, modules: Mapping[str, StackedModule], merger: WeightMerger, n: int
) -> Rates:
    """Time both modes on random tokens: some seconds for a small model.

    :param modules: what `stack_experts` made of the experts.
    :param merger: what puts candidates into the weights.
    :param n: the number of experts.
    """
    pop = torch.full((2, n), 0.5)
    loads: list[float] = []
    prompts: dict[str, list[Points]] = {mode: [] for mode in MODES}
    steps: dict[str, list[Points]] = {mode: [] for mode in MODES}

    def time_passes_of(mode: str) -> None:
        prompts[mode].append(_time_prompts(model))
        steps[mode].append(_time_steps(model))

    for _ in range(ROUNDS):
        try:
            loads.append(_seconds_of(lambda: merger.load(pop[0]), model.device))
            time_passes_of("merged")
        finally:
            merger.restore()
        with (
            merged(model.model, dict(modules), pop) as population,
            model.candidates(population.select),
        ):
            time_passes_of("unmerged")
    return Rates(
        prompts={mode: _line_through(_least(prompts[mode])) for mode in MODES},
        steps={mode: _line_through(_least(steps[mode])) for mode in MODES},
        load=min(loads),
    )


def _least(rounds: Sequence[Points]) -> Points:
    """The least seconds of each pass over all rounds."""
    least = []
    for points in zip(*rounds, strict=True):
        least.append((points[0][0], min(seconds for _, seconds in points)))
    return least


def _time_prompts(model: LanguageModel) -> Points:
    """Times of passes over prompts, with the model as it is.

    Where the sizes of batches were measured, a pass of such a size is the largest.
    """
    room = model.max_memory // (WIDTH * model.memory.token + model.memory.logits)
    most_rows = max(1, min(model.batch_tokens // WIDTH, room))
    largest = [most_rows] if model.batch_sizes.is_measured else []
    points = []
    for rows in sorted({min(rows, most_rows) for rows in [*PROMPT_ROWS, *largest]}):
        candidates, tokens, mask = _random_batch(model, rows)

        def run_prompts(candidates=candidates, tokens=tokens, mask=mask):
            model.forward(candidates, tokens, mask, [1] * len(candidates))

        points.append((tokens.numel(), _seconds_of(run_prompts, model.device)))
    return points


def _time_steps(model: LanguageModel) -> Points:
    """Times of decoding steps, with the model as it is.

    Without a cache there are none: each token takes a pass over all tokens.
    """
    if not model.capabilities.cache:
        return []
    points = []
    measured = model.batch_sizes.rows
    largest = [] if measured is None else [measured]
    for rows in sorted({*STEP_ROWS, *largest}):
        candidates, tokens, mask = _random_batch(model, rows)
        cache = model.forward.new_cache()
        model.forward(candidates, tokens, mask, [0] * len(candidates), cache)

        widths = itertools.count(WIDTH + 1)  # of the cache and the new token

        def run_step(candidates=candidates, tokens=tokens[:, :1], cache=cache, widths=widths):
            mask = tokens.new_ones(len(candidates), next(widths))
            model.forward(candidates, tokens, mask, [1] * len(candidates), cache)

        points.append((len(candidates), _seconds_of(run_step, model.device)))
    return points


def _random_batch(model: LanguageModel, rows: int) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """Rows of two candidates in turn: their candidates, random tokens and the mask of these."""
    if not model.capabilities.batch_rows:
        rows = 1
    mixes = model.capabilities.mix_candidates
    candidates = [row % 2 if mixes else 0 for row in range(rows)]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.known_tokens, (rows, WIDTH), generator=generator)
    tokens = tokens.to(model.device)
    return candidates, tokens, torch.ones_like(tokens)


def _line_through(points: Points) -> Rate:
    """The rate through the first and the last point, with neither part below 0.

    :param points: as `Points`; the rate of none is 0.
    """
    if not points:
        return Rate(0.0, 0.0)
    few, less = points[0]
    many, more = points[-1]
    if few == many:
        return Rate(0.0, less / few)
    per_token = max(0.0, (more - less) / (many - few))
    return Rate(max(0.0, less - per_token * few), per_token)


def _seconds_of(work: Callable[[], None], device: torch.device) -> float:
    """The time of a run, after one that does not count."""
    work()
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start
