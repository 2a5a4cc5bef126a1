"""Independent runs side by side, in threads: torch lets other threads go on while it computes."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

# More would wait for Python's lock, which a choice of points holds for a fifth to a quarter of its
# time (benchmarks/results/step.md).
MAX_THREADS = 8


def side_by_side(
    function: Callable[..., torch.Tensor], runs: Sequence[Sequence[torch.Tensor]]
) -> list[torch.Tensor]:
    """Call a function for every run, in as many threads as torch may use, at most `MAX_THREADS`.

    The results are those of one run after another with one of torch's threads. One run alone is
    computed in the thread of the caller.

    :param function: of the tensors of one run, without autograd.
    :param runs: the tensors of every run, on the CPU: on an accelerator another thread would not
        use the caller's stream.
    :return: the results, in the order of the runs.
    :raises Exception: what the function raises, for the first run in this order for which it does.
    """
    all_threads = torch.get_num_threads()
    workers = min(len(runs), all_threads, MAX_THREADS)
    if workers <= 1:
        return [function(*run) for run in runs]
    inference = torch.is_inference_mode_enabled()

    def call(run: Sequence[torch.Tensor]) -> torch.Tensor:
        # A new thread has the modes of the start.
        with torch.inference_mode(inference), torch.no_grad():
            return function(*run)

    try:
        with ThreadPoolExecutor(workers, initializer=_use_one_thread) as pool:
            return list(pool.map(call, runs))
    finally:
        torch.set_num_threads(all_threads)  # for threads that start later


def _use_one_thread() -> None:
    """Have torch compute in the calling thread alone. Pools inside are then none."""
    torch.get_num_threads()  # sets up what would otherwise overwrite the number at its first use
    torch.set_num_threads(1)
