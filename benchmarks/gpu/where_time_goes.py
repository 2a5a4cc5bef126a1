"""Where does the time of passes and steps go? Kernels on the device, and the clock beside them.

On a CPU its operators count in place of kernels.

    python -m benchmarks.gpu.where_time_goes                        # a minute on a GPU
    python -m benchmarks.gpu.where_time_goes --tiny --device cpu    # a try
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.random_bases import (
    EXPERTS,
    SHAPES,
    Regime,
    build_config,
    build_model,
    build_tokenizer,
    random_population,
    write_adapters,
)
from benchmarks.gpu.rates import seconds_of
from benchmarks.gpu_check import with_index
from evox_evogm.problems import LoRAMergeProblem
from evox_evogm.problems.inference.batch_sizes import BatchSizes
from evox_evogm.problems.inference.device_clock import synchronize
from evox_evogm.problems.inference.measure_batches import WIDTH, RandomBatches
from evox_evogm.problems.inference.shared_batches import share_batches
from evox_evogm.problems.inference.static_steps import make_static_steps

STATIC_STEPS = 200
HEADERS = ("", "launches", "on the device, ms", "in all, ms")


class Size(NamedTuple):
    """How much is run.

    :param candidates: P.
    :param long: prompts of four merges.
    :param tokens: of a pass over prompts.
    :param rows: of a step.
    """

    candidates: int
    long: Regime
    tokens: int
    rows: int


REAL = Size(20, Regime(16, 512), 16_384, 640)
TINY = Size(3, Regime(4, 20), 4 * WIDTH, 12)


class Spent(NamedTuple):
    """What a piece of work takes.

    :param launches: kernels, or operators on a CPU.
    :param device_ms: the sum of their times.
    :param ms: by the clock.
    """

    launches: int
    device_ms: float
    ms: float


def spend(work: Callable[[], object], device: torch.device) -> Spent:
    """Run something three times: to warm up, by the clock, and under the profiler."""
    seconds = seconds_of(work, device)
    on_cpu = device.type == "cpu"
    kinds = [ProfilerActivity.CPU] if on_cpu else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=kinds) as profiled:
        work()
        synchronize(device)
    microseconds = []
    for event in profiled.events() or ():
        if (event.device_type == torch.autograd.DeviceType.CPU) == on_cpu:
            microseconds.append(event.time_range.elapsed_us())
    return Spent(len(microseconds), 1e-3 * sum(microseconds), 1e3 * seconds)


def spend_on_all(
    name: str, device: torch.device, size: Size, *, tiny: bool
) -> Iterator[tuple[str, Spent]]:
    """What four merges of long prompts take, a pass over prompts, and steps with either cache.

    :param name: of the base, in `SHAPES`.
    """
    config = build_config(name, tiny=tiny)
    model = build_model(config, torch.bfloat16, device)
    task = size.long.task("long", config.vocab_size)
    pop = random_population(size.candidates, EXPERTS).to(device)
    with tempfile.TemporaryDirectory() as folder:
        problem = LoRAMergeProblem(
            model,
            write_adapters(model, Path(folder)),
            [task],
            tokenizer=build_tokenizer(config.vocab_size),
            device=device,
            mode="unmerged",
            batch_tokens=BatchSizes(size.tokens, size.rows, static_from=1),
        )
    four = pop[:4]
    yield "four merges of long prompts", spend(lambda: problem.score_together(four), device)
    language_model = problem.language_model
    with (
        torch.no_grad(),
        share_batches(language_model, problem.scorer.stacked, pop),
    ):
        batches = RandomBatches(language_model, size.candidates)
        yield f"a pass over {size.tokens:,} tokens", spend(batches.prompts(size.tokens), device)
        yield f"a step of {size.rows} rows, growing cache", spend(batches.step(size.rows), device)
        cache, mask, tokens = batches.filled_cache(size.rows)
        owners = batches.owners(size.rows)
        steps = make_static_steps(language_model.forward, owners, cache, mask, STATIC_STEPS)
        if steps is None:
            return
        steps(tokens)  # runs as it is; the next one, which warms up, is captured
        work = spend(lambda: steps(tokens).argmax(-1), device)
        yield f"a step of {size.rows} rows, static cache", work


def main(words: list[str] | None = None) -> None:
    """Print a table, row after row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=torch.device(default))
    parser.add_argument("--base", choices=SHAPES, default="Qwen2.5-1.5B")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, for a try on the CPU")
    arguments = parser.parse_args(words)
    warnings.filterwarnings("ignore")  # of the profiler about its cycles
    print("| " + " | ".join(HEADERS) + " |")
    print("| --- |" + " ---: |" * 3)
    size = TINY if arguments.tiny else REAL
    device = with_index(arguments.device)
    for what, spent in spend_on_all(arguments.base, device, size, tiny=arguments.tiny):
        numbers = f"{spent.launches:,} | {spent.device_ms:.1f} | {spent.ms:.1f}"
        print(f"| {what} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
