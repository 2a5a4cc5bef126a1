"""What is done with merges whose evaluation fails."""

from types import SimpleNamespace

import pytest
import torch

from evox_evogm.problems import failures, retries
from evox_evogm.problems.evaluation import Evaluation
from evox_evogm.problems.failures import DeviceLost, SharedFailure, is_out_of_memory
from evox_evogm.problems.retries import evaluate_with_retries

POP = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


def scored(point) -> Evaluation:
    """A merge whose score is its first coefficient."""
    return Evaluation(tuple(point), {"task": (point[0],)}, 0.1)


def without_numbers(point) -> Evaluation:
    return Evaluation(tuple(point), {}, 0.1, "task task: expected finite scores, found others")


class Evaluator:
    """Evaluates merges, except that the first calls have given outcomes.

    :param outcomes: per call an error to raise, a list of evaluations, or None for what is usual.
    """

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.sizes = []

    def __call__(self, pop):
        self.sizes.append(len(pop))
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is not None:
            return outcome
        return [scored(point) for point in pop.tolist()]


def language_model(batch_tokens=2048):
    return SimpleNamespace(batch_tokens=batch_tokens, device=torch.device("cpu"))


def run(evaluator, pop=POP, model=None):
    return evaluate_with_retries(pop, evaluator, model or language_model())


def test_merges_that_do_not_fail_are_evaluated_once_and_together():
    evaluator = Evaluator()
    assert run(evaluator) == [scored(point) for point in POP.tolist()]
    assert evaluator.sizes == [3]


def test_no_merges_are_not_evaluated():
    evaluator = Evaluator()
    assert run(evaluator, POP[:0]) == [] and evaluator.sizes == []


def test_merges_that_fail_together_are_tried_alone_and_one_that_fails_twice_has_failed(caplog):
    evaluator = Evaluator(
        RuntimeError("broken"), None, RuntimeError("once\nmore"), RuntimeError("twice")
    )
    first, second, third = run(evaluator)
    assert evaluator.sizes == [3, 1, 1, 1, 1]
    assert (first, third) == (scored([1.0, 2.0]), scored([5.0, 6.0]))
    assert second.failure == "RuntimeError: twice" and second.coefficients == (3.0, 4.0)
    assert second.scores == {} and second.seconds > 0
    assert [record.getMessage() for record in caplog.records] == [
        "3 merges failed together (RuntimeError: broken): trying them one by one",
        "a merge failed twice and counts as worst: RuntimeError: twice",
    ]


def test_a_single_merge_is_tried_twice():
    evaluator = Evaluator(RuntimeError("once"))
    assert run(evaluator, POP[:1]) == [scored([1.0, 2.0])] and evaluator.sizes == [1, 1]


def test_a_merge_without_finite_scores_is_tried_again_alone_and_the_others_are_not():
    first, second, third = POP.tolist()
    evaluator = Evaluator([scored(first), without_numbers(second), scored(third)])
    assert run(evaluator) == [scored(first), scored(second), scored(third)]
    assert evaluator.sizes == [3, 1]


@pytest.mark.parametrize(
    ("again", "failure"),
    [
        ([without_numbers([3.0, 4.0])], "task task: expected finite scores, found others"),
        (RuntimeError("a\n  b"), "RuntimeError: a b"),
    ],
)
def test_a_merge_without_finite_scores_fails_for_the_last_reason(again, failure):
    points = POP.tolist()
    found = run(
        Evaluator([scored(points[0]), without_numbers(points[1]), scored(points[2])], again)
    )
    assert [evaluation.failure for evaluation in found] == [None, failure, None]


def test_when_memory_runs_out_the_batches_are_halved_for_good():
    evaluator = Evaluator(torch.OutOfMemoryError("CUDA out of memory"), MemoryError())
    model = language_model(2048)
    assert run(evaluator, model=model) == [scored(point) for point in POP.tolist()]
    assert evaluator.sizes == [3, 3, 3] and model.batch_tokens == 512


def test_when_the_smallest_batch_takes_too_much_memory_merges_are_tried_alone():
    evaluator = Evaluator(*[MemoryError("no room")] * 3)
    model = language_model(2)
    assert run(evaluator, model=model) == [scored(point) for point in POP.tolist()]
    assert evaluator.sizes == [3, 3, 1, 1, 1, 1] and model.batch_tokens == 1


def test_input_that_cannot_be_used_is_no_failure_of_a_merge():
    evaluator = Evaluator(ValueError("base: no chat template"))
    with pytest.raises(ValueError, match="no chat template"):
        run(evaluator)
    assert evaluator.sizes == [3]


@pytest.mark.parametrize("merges", [1, 3])
def test_no_merge_is_blamed_for_a_device_that_computes_nothing_any_more(monkeypatch, merges):
    model = SimpleNamespace(batch_tokens=2048, device=torch.device("cuda:1"))
    monkeypatch.setattr(retries, "is_lost", lambda device: device == model.device)
    evaluator = Evaluator(RuntimeError("CUDA error: device-side assert triggered\nmore"))
    expected = r"device: expected cuda:1 to answer, .* since RuntimeError: CUDA error: device-side"
    with pytest.raises(DeviceLost, match=expected):
        run(evaluator, POP[:merges], model)
    assert evaluator.sizes == [merges]  # and nothing was tried again


@pytest.mark.parametrize(
    ("outcome", "lost"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (RuntimeError("CUDA error: out of memory"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (torch.ones(()), False),
    ],
)
def test_a_device_is_lost_if_it_cannot_make_a_number(monkeypatch, outcome, lost):
    def make(shape, device):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(failures.torch, "ones", make)
    assert failures.is_lost(torch.device("cuda")) == lost
    assert not failures.is_lost(torch.device("cpu"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("broken"), False),
        (SharedFailure("RuntimeError: can't allocate memory"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) == expected


def test_nothing_holds_on_to_the_tensors_of_what_failed():
    import gc
    import weakref

    kept = []

    def evaluate(pop):
        tensor = torch.zeros(3)
        kept.append(weakref.ref(tensor))
        raise RuntimeError("broken")

    run(evaluate)
    gc.collect()
    assert len(kept) == 7 and all(reference() is None for reference in kept)
