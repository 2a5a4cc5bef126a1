"""What does a forward pass cost beside its products: how many launches, and how many waits?

An operator of torch that is not a view is a launch or more on a GPU. A wait is where the host needs
numbers of the device: `.item()`, `.tolist()`, boolean indexing, a copy to the host. Both are
counted on the CPU as torch dispatches them, on a random Llama of two layers with four experts, in
both modes. There every tensor is on the CPU, so that numbers of tensors that would be the host's
count as waits too: they are an upper bound. Counts are

- for each pass over prompts that are scored by a right answer or by choices of one token,
- for each token that is decoded, from the difference between long and short answers,
- the same with a static cache, whose steps a GPU replays as one launch.

    python -m benchmarks.speed.pass_cost
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.random_bases import (
    Regime,
    build_config,
    build_model,
    build_tokenizer,
    random_population,
    write_adapters,
)
from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.inference.forward import Forward

LAYERS, EXPERTS, P = 2, 4, 3
SHORT, LONG = 2, 6  # tokens of answers
MODES = ("unmerged", "merged")
SCORED = ("a right answer", "choices")
CACHES = {"": None, ", static cache": 1}  # from how many new tokens on it is static
# Their results, or the shapes of these, depend on numbers of the device.
WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2")
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_")


class Cost(NamedTuple):
    """What some scoring took.

    :param passes: forward passes.
    :param launches: operators of torch that are no views.
    :param waits: for the device.
    """

    passes: int
    launches: int
    waits: int


class LaunchCounter(TorchDispatchMode):
    """Counts operators that compute something, and those that wait on every device."""

    def __init__(self):
        super().__init__()
        self.launches = self.waits = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if not is_view(operator):
            self.launches += 1
        self.waits += is_waiting(operator, args)
        return operator(*args, **(kwargs or {}))


class CopyCounter(TorchFunctionMode):
    """Counts copies to the host, which on a CPU copy nothing: calls of `cpu` and `tolist`."""

    def __init__(self):
        super().__init__()
        self.copies = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.copies += getattr(function, "__name__", "") in ("cpu", "tolist")
        return function(*args, **(kwargs or {}))


def is_waiting(operator, args) -> bool:
    """Whether the host waits for an operator, as for those that index by booleans."""
    name = operator._schema.name
    if name not in INDEXING:
        return name in WAITING
    tensors = [index for index in args[1] if index is not None]
    return any(index.dtype in (torch.bool, torch.uint8) for index in tensors)


def is_view(operator) -> bool:
    """Whether an operator returns the memory of an argument, and writes nothing."""
    returned = [one.alias_info for one in operator._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returned)


def count(work: Callable[[], object]) -> Cost:
    """Count what a call does."""
    passes = 0
    run = Forward.__call__

    def counting(*inputs, **named):
        nonlocal passes
        passes += 1
        return run(*inputs, **named)

    Forward.__call__ = counting
    launches, copies = LaunchCounter(), CopyCounter()
    try:
        with copies, launches:
            work()
    finally:
        Forward.__call__ = run
    return Cost(passes, launches.launches, launches.waits + copies.copies)


def make_tasks(vocabulary: int) -> dict[str, Task]:
    """A task for each kind of scoring."""
    tasks = {"a right answer": Regime(4, 8).task("gold", vocabulary)}
    pairs = (("A", "w4"), ("B", "w5"), ("C", "w6"))
    examples = []
    for example in Regime(4, 8).task("choices", vocabulary).examples:
        examples.append(Example(example.id, example.prompt, "A", pairs))
    tasks["choices"] = Task("choices", "1", "choice_likelihood", tuple(examples))
    for tokens in (SHORT, LONG):
        tasks[f"{tokens} new tokens"] = Regime(4, 8, tokens).task(f"new{tokens}", vocabulary)
    return tasks


def main() -> None:
    config = build_config("Llama-3.1-8B", tiny=True)
    config.num_hidden_layers = LAYERS
    model = build_model(config, torch.float32, torch.device("cpu"))
    tokenizer = build_tokenizer(config.vocab_size)
    tasks = make_tasks(config.vocab_size)
    pop = random_population(P, EXPERTS)
    print("| scored | mode | passes | launches a pass | waits a pass |")
    print("| --- | --- | ---: | ---: | ---: |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        experts = write_adapters(model, Path(folder), count=EXPERTS, rank=4)
        problem = LoRAMergeProblem(model, experts, list(tasks.values()), tokenizer=tokenizer)
    for mode in MODES:
        merges = pop if mode == "unmerged" else pop[:1]
        costs = {}

        def measure(task: Task, mode: str = mode, merges: torch.Tensor = merges) -> Cost:
            problem.modes = {task.name: mode}
            problem.score_together(merges, [task])  # tokens are made at the first call
            return count(lambda: problem.score_together(merges, [task]))

        for name in SCORED:
            costs[name] = measure(tasks[name])
        sizes = problem.batch_sizes
        for cache, static_from in CACHES.items():
            problem.language_model.batch_sizes = replace(sizes, static_from=static_from)
            short, long = (
                measure(tasks[f"{SHORT} new tokens"]),
                measure(tasks[f"{LONG} new tokens"]),
            )
            differences = [more - less for more, less in zip(long, short, strict=True)]
            costs[f"each new token{cache}"] = Cost(*differences)
        problem.language_model.batch_sizes = sizes
        for name, cost in costs.items():
            print(
                f"| {name} | {mode} | {cost.passes} | {cost.launches / cost.passes:.1f} "
                f"| {cost.waits / cost.passes:.2f} |"
            )


if __name__ == "__main__":
    main()
