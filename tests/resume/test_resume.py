"""Searches that are cut off and go on, beside the same search in one piece."""

import json
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from builders import history
from evox.algorithms import PSO
from evox.core import Algorithm, Problem
from evox.workflows import EvalMonitor, StdWorkflow

from evox_evogm import EvoGM, ResumableSearch, SurrogateEvoGM, SurrogateSettings
from evox_evogm.algorithms.gaussian_process import RBF
from evox_evogm.baselines import CMAES
from evox_evogm.problems import Example, LoRAMergeProblem, Task


class Cut(Exception):
    pass


class Costly(Problem):
    """Counts its evaluations, and fails at a given population."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.populations, self.fail_at = 0, fail_at

    def evaluate(self, pop):
        if self.populations == self.fail_at:
            raise Cut
        self.populations += 1
        noise = 0.01 * torch.randn(len(pop))  # the random state must be restored too
        return ((pop - 0.3) ** 2).sum(1) + noise


BOUND = torch.ones(3)


def evogm(pop_size=5, upper=BOUND, epochs=5):
    return EvoGM(pop_size, -BOUND, upper, n_iters=2, epochs=epochs, hidden_dims=(8,))


def surrogate_evogm(**settings):
    few = {"gaussian_candidates": 20, "crossover_candidates": 10}
    settings = replace(SurrogateSettings(), **few, **settings)
    return SurrogateEvoGM(5, -BOUND, BOUND, settings=settings)


def pso(pop_size=5):
    return PSO(pop_size, -BOUND, BOUND)


def workflow_of(make, problem):
    torch.manual_seed(3)
    return StdWorkflow(make(), problem, EvalMonitor())


def fail(*_):
    raise Cut


@pytest.mark.parametrize("make", [evogm, surrogate_evogm, pso])
@pytest.mark.parametrize("cut", [0, 1, 3, 5])
def test_a_search_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path, make, cut):
    whole = ResumableSearch(workflow_of(make, Costly()), tmp_path / "whole")
    whole.run(6)
    with pytest.raises(Cut):
        first = ResumableSearch(workflow_of(make, Costly(fail_at=cut)), tmp_path / "cut")
        first.run(6)
    first.close()
    problem = Costly()
    second = ResumableSearch(workflow_of(make, problem), tmp_path / "cut")
    second.run(6)
    assert problem.populations == 6 - cut  # none is evaluated again
    assert history(tmp_path / "cut") == history(tmp_path / "whole")
    for name, value in whole.workflow.state_dict().items():
        if not name.endswith("_token"):
            assert torch.equal(second.workflow.state_dict()[name], value), name
    best = [search.workflow.monitor.get_best_fitness() for search in (whole, second)]
    assert best[0] == best[1]


def test_a_population_that_is_written_but_not_yet_counted_is_not_evaluated_again(
    tmp_path, monkeypatch
):
    whole = ResumableSearch(workflow_of(evogm, Costly()), tmp_path / "whole")
    whole.run(4)
    first = ResumableSearch(workflow_of(evogm, Costly()), tmp_path / "cut")
    first.run(2)
    monkeypatch.setattr(first, "_save", fail)
    with pytest.raises(Cut):
        first.run(3)
    first.close()
    assert len(history(tmp_path / "cut")) == 15
    problem = Costly()
    second = ResumableSearch(workflow_of(evogm, problem), tmp_path / "cut")
    assert second.steps == 2
    second.run(4)
    assert problem.populations == 1
    # The noise of population 3 was not drawn again, so that what follows is drawn otherwise.
    assert history(tmp_path / "cut")[:15] == history(tmp_path / "whole")[:15]


def test_a_search_that_does_not_repeat_itself_is_refused(tmp_path):
    first = ResumableSearch(workflow_of(evogm, Costly()), tmp_path)
    first.run(1)
    first.close()
    (tmp_path / "state.safetensors").unlink()
    torch.manual_seed(99)
    other = ResumableSearch(StdWorkflow(evogm(), Costly()), tmp_path)
    with pytest.raises(
        ValueError, match="expected to repeat evaluation 0 of step 0, found other points"
    ):
        other.run(1)


def test_the_state_of_another_workflow_is_refused(tmp_path):
    first = ResumableSearch(workflow_of(evogm, Costly()), tmp_path)
    first.run(1)
    first.close()
    message = (
        "expected the state of this workflow, "
        "found one that was made or seeded with another 'algorithm"
    )
    with pytest.raises(ValueError, match=message):
        ResumableSearch(workflow_of(pso, Costly()), tmp_path)


@pytest.mark.parametrize(
    ("make", "change", "seed", "what"),
    [
        (evogm, {"pop_size": 6}, 3, "algorithm.fitness"),
        (evogm, {"upper": 2 * BOUND}, 3, "algorithm.center"),
        (evogm, {"epochs": 6}, 3, "algorithm.epochs"),
        (evogm, {}, 4, "random state"),
        (pso, {"pop_size": 6}, 3, "algorithm.fit"),
        (surrogate_evogm, {"beta": 3.0}, 3, "algorithm.settings"),
        (surrogate_evogm, {"kernel": RBF}, 3, "algorithm.settings"),
    ],
)
def test_the_state_of_another_search_is_refused(tmp_path, make, change, seed, what):
    with closing(ResumableSearch(workflow_of(make, Costly()), tmp_path)) as first:
        first.run(1)
    torch.manual_seed(seed)
    with pytest.raises(ValueError, match=f"one that was made or seeded with another '{what}'"):
        ResumableSearch(StdWorkflow(make(**change), Costly(), EvalMonitor()), tmp_path)
    # The refusal has let go of the folder.
    ResumableSearch(workflow_of(make, Costly()), tmp_path).close()


class Remembering(Algorithm):
    """Keeps something beside its tensors."""

    def __init__(self, thing):
        super().__init__()
        self.pop_size, self.thing = 2, thing

    def step(self):
        self.evaluate(torch.rand(2, 3))
        if isinstance(self.thing, torch.Tensor):
            self.thing = torch.cat([self.thing, torch.rand(1)])
        else:
            self.thing.append(1)

    def record_step(self):
        return {}


def cma_es():
    return CMAES(torch.zeros(3), 0.3, 4)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (cma_es, "cma"),
        (lambda: Remembering(torch.empty(0)), "thing"),
        (lambda: Remembering([]), "thing"),
    ],
    ids=["CMA-ES", "a growing tensor", "a list"],
)
def test_an_algorithm_whose_state_is_not_in_tensors_is_refused(tmp_path, make, what):
    message = (
        r"algorithm: expected one that keeps its state in tensors \(Mutable\), "
        f"found that a step changes '{what}'"
    )
    with (
        closing(ResumableSearch(workflow_of(make, Costly()), tmp_path)) as search,
        pytest.raises(ValueError, match=message),
    ):
        search.run(2)
    assert not (tmp_path / "state.safetensors").exists()


class Odd(Problem):
    """Has no number for some points."""

    def evaluate(self, pop):
        fitness = pop.sum(1)
        odd = torch.tensor([torch.nan, torch.inf, -torch.inf])[fitness.sign().long() - 1]
        return torch.where(fitness > 0, odd, fitness)


def test_fitness_that_is_no_number_is_written_by_its_name_and_read_again(tmp_path, monkeypatch):
    first = ResumableSearch(workflow_of(evogm, Odd()), tmp_path)
    monkeypatch.setattr(first, "_save", fail)
    with pytest.raises(Cut):
        first.run(1)
    first.close()
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    written = [json.loads(line, parse_constant=pytest.fail)["fitness"] for line in lines]
    assert "nan" in written
    problem = Costly(fail_at=0)  # nothing is evaluated
    with closing(ResumableSearch(workflow_of(evogm, problem), tmp_path)) as second:
        second.run(1)
    found = second.workflow.monitor.latest_fitness.tolist()
    assert list(map(str, found)) == [str(float(value)) for value in written]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"rubbish", "state.safetensors: expected a state in safetensors"),
        (None, r"state.safetensors: expected format 2, found 7, which another version"),
    ],
)
def test_a_state_that_cannot_be_read_is_refused(tmp_path, content, message):
    from safetensors.torch import save_file

    path = tmp_path / "state.safetensors"
    if content is None:
        save_file({"x": torch.zeros(1)}, path, metadata={"format": "7"})
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        ResumableSearch(workflow_of(evogm, Costly()), tmp_path)


def test_a_journal_shorter_than_the_state_says_is_refused(tmp_path):
    first = ResumableSearch(workflow_of(evogm, Costly()), tmp_path)
    first.run(2)
    first.close()
    (tmp_path / "history.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match="expected the 10 evaluations of the state, found 0"):
        ResumableSearch(workflow_of(evogm, Costly()), tmp_path)


@pytest.fixture
def make_merging(model, tokenizer, make_adapter):
    """A function that makes a search for a merge of two experts, and the list of its batches."""
    folders = [make_adapter("first", seed=1), make_adapter("second", seed=2)]
    examples = (Example("a", "1 + 1 =", "2"), Example("b", "2 + 2 =", "4"))
    task = Task("add", "1", "gold_log_probability", examples)
    bounds = torch.ones(2)

    def make(fail_at=None):
        problem = LoRAMergeProblem(
            model, folders, [task], tokenizer=tokenizer, mode="unmerged", candidates_at_once=2
        )
        score, batches = problem.scorer.score, []

        def note_and_score(pop, tasks):
            if len(batches) == fail_at:
                raise KeyboardInterrupt
            batches.append(len(pop))
            return score(pop, tasks)

        problem.scorer.score = note_and_score
        torch.manual_seed(5)
        algorithm = EvoGM(5, -bounds, bounds, n_iters=1, epochs=5, hidden_dims=(8,), clamp=False)
        return StdWorkflow(algorithm, problem, opt_direction="max"), batches

    return make


def test_merges_are_written_down_by_the_candidates_that_are_scored_together(tmp_path, make_merging):
    workflow, _ = make_merging()
    ResumableSearch(workflow, tmp_path / "whole").run(3)
    for fail_at in (0, 1, 4, 7):  # in a first, a second and a last block of a population
        folder = tmp_path / str(fail_at)
        workflow, before = make_merging(fail_at)
        with closing(ResumableSearch(workflow, folder)) as first, pytest.raises(KeyboardInterrupt):
            first.run(3)
        workflow, after = make_merging()
        ResumableSearch(workflow, folder).run(3)
        assert history(folder) == history(tmp_path / "whole")
        assert before + after == [2, 2, 1] * 3
    row = history(folder)[0]
    scores = row["examples"]["add"]
    assert len(scores) == 2 and row["score"] == pytest.approx(sum(scores) / 2)
