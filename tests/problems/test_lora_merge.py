"""The problem as EvoX sees it: coefficients in, scores out."""

import pytest
import torch
from builders import build_model
from evox.algorithms import NSGA2, RVEA
from evox.workflows import EvalMonitor, StdWorkflow

from evox_evogm import EvoGM
from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.evaluation import Evaluation
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.metrics import score_task
from evox_evogm.problems.tasks.task import METRIC_NAMES

ADD = Task(
    "add", "1", "gold_log_probability", (Example("0", "1+1=", "2"), Example("1", "2+5=", "7"))
)
PICK = Task(
    "pick",
    "1",
    "choice_likelihood",
    tuple(Example(str(i), f"pick {i}", "A", (("A", "yes"), ("B", "no"))) for i in range(5)),
)


@pytest.fixture
def folders(make_adapter):
    return [
        make_adapter("first", seed=1),
        make_adapter("second", seed=2, r=2, target_modules=["up_proj"]),
    ]


@pytest.fixture
def problem(model, tokenizer, folders):
    return LoRAMergeProblem(model, folders, [ADD, PICK], tokenizer=tokenizer)


class Scorer:
    """Scores as another scorer does, except that the first calls may raise.

    :param errors: per call what it raises, or None.
    :param change: a function that changes the scores by task in place.
    """

    def __init__(self, scorer, *errors, change=lambda scores: None):
        self.scorer, self.errors, self.change = scorer, list(errors), change
        self.sizes = []  # the number of merges of each call

    def score(self, pop, tasks):
        self.sizes.append(len(pop))
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        found = self.scorer.score(pop, tasks)
        self.change(found.scores)
        return found

    def __getattr__(self, name):
        return getattr(self.scorer, name)


def test_scores_are_the_mean_over_tasks_of_a_model_that_peft_merged(problem, folders, tokenizer):
    from peft import PeftModel

    reference = PeftModel.from_pretrained(build_model(), folders[0], adapter_name="first")
    reference.load_adapter(folders[1], adapter_name="second")
    pop = torch.tensor([[0.3, -0.9], [1.0, 0.0], [-2.0, 0.5]])
    scores = problem.evaluate(pop)
    assert scores.shape == (3,)
    for row, score in zip(pop.tolist(), scores, strict=True):
        reference.add_weighted_adapter(["first", "second"], row, "merge", combination_type="cat")
        reference.set_adapter("merge")
        merged = LanguageModel(reference, tokenizer)
        expected = (score_task(ADD, merged).mean() + score_task(PICK, merged).mean()) / 2
        reference.delete_adapter("merge")
        assert float(score) == pytest.approx(float(expected), abs=1e-4)


def test_coefficients_of_zero_are_the_base(problem, model, tokenizer):
    plain = score_task(ADD, LanguageModel(model, tokenizer))
    torch.testing.assert_close(problem.score_tasks(torch.zeros(2))["add"], plain)


@pytest.mark.parametrize("candidates_at_once", [None, 1, 3])
def test_scores_do_not_depend_on_the_rest_of_the_population(
    model, tokenizer, folders, candidates_at_once
):
    settings = {
        "tokenizer": tokenizer,
        "candidates_at_once": candidates_at_once,
        "batch_tokens": 40,
    }
    problem = LoRAMergeProblem(model, folders, [ADD, PICK], **settings)
    pop = torch.randn(4, 2)
    alone = [problem.score_tasks(row) for row in pop]
    expected = torch.stack([(scores["add"].mean() + scores["pick"].mean()) / 2 for scores in alone])
    torch.testing.assert_close(problem.evaluate(pop), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["merged", {"add": "merged", "pick": "unmerged"}])
def test_either_mode_gives_the_same_scores(model, tokenizer, folders, mode):
    unmerged = LoRAMergeProblem(model, folders, [ADD, PICK], tokenizer=tokenizer, mode="unmerged")
    other = LoRAMergeProblem(model, folders, [ADD, PICK], tokenizer=tokenizer, mode=mode)
    pop = torch.randn(4, 2)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    torch.testing.assert_close(other.evaluate(pop), unmerged.evaluate(pop), rtol=1e-5, atol=1e-5)
    assert other.scorer.rates is None  # nothing to choose, nothing to measure
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("dense", 'mode: expected "auto", "unmerged" or "merged", found \'dense\''),
        ({"add": "dense"}, 'mode: expected "auto", "unmerged" or "merged", found \'dense\''),
        ({"sum": "merged"}, r"mode: expected names of tasks \(add\), found 'sum'"),
    ],
)
def test_an_unknown_mode_is_refused(model, tokenizer, folders, mode, message):
    with pytest.raises(ValueError, match=message):
        LoRAMergeProblem(model, folders, [ADD], tokenizer=tokenizer, mode=mode)


def test_merges_that_are_the_same_in_the_models_dtype_are_scored_once(tokenizer, folders):
    problem = LoRAMergeProblem(
        build_model().to(torch.bfloat16), folders, [ADD], tokenizer=tokenizer
    )
    reported = []
    problem.scorer = Scorer(problem.scorer)
    problem.on_evaluations = reported.extend
    pop = torch.tensor([[0.5, 1.0], [0.5, 1.0], [0.5001, 1.0], [0.6, 1.0]])
    scores = problem.evaluate(pop)
    again = problem.evaluate(pop[[3, 0]])
    assert problem.scorer.sizes == [2] and len(reported) == 6
    assert scores[0] == scores[1] == scores[2] == again[1] and scores[3] == again[0]


def test_a_bad_number_of_candidates_at_once_is_refused(model, tokenizer, folders):
    with pytest.raises(
        ValueError, match="candidates_at_once: expected a whole number of at least 1, found 0"
    ):
        LoRAMergeProblem(model, folders, [ADD], tokenizer=tokenizer, candidates_at_once=0)


def test_tasks_as_objectives_are_columns_whose_mean_is_the_single_score(
    model, tokenizer, folders, problem
):
    by_task = LoRAMergeProblem(model, folders, [ADD, PICK], tokenizer=tokenizer, objectives="tasks")
    pop = torch.tensor([[0.3, -0.9], [1.0, 0.0], [-2.0, 0.5]])
    columns = by_task.evaluate(pop)
    assert columns.shape == (3, 2)
    torch.testing.assert_close(columns.mean(1), problem.evaluate(pop))
    torch.testing.assert_close(columns[0, 1], problem.score_tasks(pop[0])["pick"].mean())
    with pytest.raises(
        ValueError, match="objectives: expected mean, tasks, outcomes, gradients, found 'every'"
    ):
        LoRAMergeProblem(model, folders, [ADD], tokenizer=tokenizer, objectives="every")


ANSWER = Task(
    "answer",
    "1",
    "exact_match",
    (Example("0", "1+1=", "2"), Example("1", "2+5=", "7")),
    max_new_tokens=3,
)


def test_a_dev_and_a_test_task_of_one_name_are_not_scored_together(problem):
    test = ADD.take(1)
    with pytest.raises(ValueError, match="of one name are scored by two calls"):
        problem.score_tasks(torch.ones(problem.n_experts), [ADD, test])


def test_a_folder_of_adapters_is_no_list_of_them(model, tokenizer):
    with pytest.raises(ValueError, match=r"experts: expected a list .*, found 'my/adapters'"):
        LoRAMergeProblem(model, "my/adapters", [ADD], tokenizer=tokenizer)


@pytest.mark.parametrize("mode", ["unmerged", "merged"])
def test_outcomes_say_by_how_much_every_example_is_right(model, tokenizer, folders, mode):
    tasks = [ADD, PICK, ANSWER]
    problem = LoRAMergeProblem(
        model, folders, tasks, tokenizer=tokenizer, objectives="outcomes", mode=mode
    )
    pop = torch.tensor([[0.3, -0.9], [1.0, 0.0], [-2.0, 0.5], [3.0, 3.0]])
    fitness = problem.evaluate(pop)
    assert fitness.shape == (4, 1 + 2 + 5 + 2)
    weights, by_sign, groups = problem.outcomes
    assert groups.tolist() == [0] * 2 + [1] * 5 + [2] * 2
    assert by_sign.tolist() == [False] * 2 + [True] * 7
    outcomes = fitness[:, 1:]
    assert 0 < float((outcomes[:, by_sign] > 0).float().mean()) < 1
    torch.testing.assert_close(
        torch.where(by_sign, (outcomes > 0).float(), outcomes) @ weights, fitness[:, 0]
    )


def test_outcomes_are_known_again_with_the_evaluation_and_unknown_where_it_failed(
    model, tokenizer, folders
):
    settings = {"tokenizer": tokenizer, "objectives": "outcomes"}
    kept, pop = [], torch.tensor([[0.3, -0.9], [1.0, 0.0]])
    problem = LoRAMergeProblem(model, folders, [ADD, PICK], on_evaluations=kept.extend, **settings)
    expected = problem.evaluate(pop)
    again = LoRAMergeProblem(model, folders, [ADD, PICK], **settings)
    again.load_history([evaluation.as_record() for evaluation in kept])
    again.scorer.score = None
    torch.testing.assert_close(again.evaluate(pop), expected)
    problem.scorer = Scorer(problem.scorer, *[RuntimeError("broken")] * 3)
    fitness = problem.evaluate(torch.tensor([[0.1, 0.1], [0.2, 0.2]]))
    assert (
        fitness[0, 0] == -torch.inf and fitness[0, 1:].isnan().all() and fitness[1].isfinite().all()
    )


@pytest.mark.parametrize("multi_objective", [NSGA2, RVEA])
def test_evox_finds_a_pareto_front_of_merges(model, tokenizer, folders, multi_objective):
    torch.manual_seed(0)
    problem = LoRAMergeProblem(model, folders, [ADD, PICK], tokenizer=tokenizer, objectives="tasks")
    algorithm = multi_objective(6, 2, -torch.ones(2), torch.ones(2))
    monitor = EvalMonitor(multi_obj=True, full_sol_history=True)
    workflow = StdWorkflow(algorithm, problem, monitor, opt_direction=["max", "max"])
    workflow.init_step()
    for _ in range(3):
        workflow.step()
    solutions, fitness = monitor.get_pf()
    torch.testing.assert_close(problem.evaluate(solutions), fitness)
    better = (fitness[None] >= fitness[:, None]).all(2) & (fitness[None] > fitness[:, None]).any(2)
    assert (
        not better.any()
    )  # none is at least as good everywhere and better somewhere than one on the front


def test_every_candidate_is_reported_with_the_score_of_each_task(problem):
    seen = []
    problem.on_evaluations = seen.extend
    pop = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    scores = problem.evaluate(pop)
    assert [list(evaluation.coefficients) for evaluation in seen] == pop.tolist()
    assert [evaluation.score for evaluation in seen] == pytest.approx(scores.tolist())
    assert [sum(evaluation.by_task.values()) / 2 for evaluation in seen] == pytest.approx(
        scores.tolist()
    )
    assert {name: len(values) for name, values in seen[0].scores.items()} == {"add": 2, "pick": 5}
    assert seen[0].seconds > 0 and seen[1].seconds > 0 and seen[2].seconds == 0  # known already
    assert all(evaluation.failure is None for evaluation in seen)


def test_evaluations_of_an_earlier_process_are_not_made_again(model, tokenizer, folders, problem):
    seen = []
    problem.on_evaluations = seen.extend
    pop = torch.randn(3, 2)
    scores = problem.evaluate(pop)
    later = LoRAMergeProblem(model, folders, [ADD, PICK], tokenizer=tokenizer, mode=problem.modes)
    later.load_history(evaluation.as_record() for evaluation in seen)
    later.scorer.score = None  # nothing is left to do
    assert torch.equal(later.evaluate(pop), scores)


def test_failures_of_an_earlier_process_are_tried_again(problem):
    pop = torch.randn(2, 2)
    expected = problem.evaluate(pop)
    problem.cache.clear()
    problem.load_history(
        [Evaluation(tuple(pop[0].tolist()), {}, 0.1, "RuntimeError: broken").as_record()]
    )
    torch.testing.assert_close(problem.evaluate(pop), expected)


def test_merges_that_fail_together_are_tried_alone_and_one_that_fails_twice_counts_as_worst(
    problem,
):
    pop = torch.randn(3, 2)
    expected = problem.evaluate(pop)
    problem.cache.clear()
    seen = []
    problem.on_evaluations = seen.extend
    errors = [RuntimeError("broken"), None, RuntimeError("once\nmore"), RuntimeError("twice")]
    problem.scorer = Scorer(problem.scorer, *errors)
    scores = problem.evaluate(pop)
    assert problem.scorer.sizes == [3, 1, 1, 1, 1]
    torch.testing.assert_close(scores[[0, 2]], expected[[0, 2]])
    assert scores[1] == -torch.inf
    assert [evaluation.failure for evaluation in seen] == [None, "RuntimeError: twice", None]
    assert torch.equal(
        problem.evaluate(pop[1:]), scores[1:]
    )  # known: a third try would come to the same


def test_when_memory_runs_out_the_batches_are_halved(problem):
    pop = torch.randn(2, 2)
    expected = problem.evaluate(pop)
    problem.cache.clear()
    errors = [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()]
    problem.scorer = Scorer(problem.scorer, *errors)
    torch.testing.assert_close(problem.evaluate(pop), expected)
    assert problem.scorer.sizes == [2, 2, 2] and problem.language_model.batch_tokens == 512


def test_a_merge_whose_scores_are_not_finite_has_failed_and_the_others_have_not(problem):
    def second_is_nan(scores):
        scores["add"][1 if len(scores["add"]) == 3 else 0] = torch.nan

    def all_are_nan(scores):
        scores["add"].fill_(torch.nan)

    plain = problem.scorer
    problem.scorer = Scorer(plain, change=second_is_nan)
    scores = problem.evaluate(torch.randn(3, 2))
    assert problem.scorer.sizes == [3, 1]
    assert scores[1] == -torch.inf and scores[[0, 2]].isfinite().all()
    problem.scorer = Scorer(plain, change=all_are_nan)
    with pytest.raises(
        RuntimeError, match="all 2 merges .* failed: task add: expected finite scores"
    ):
        problem.evaluate(torch.randn(2, 2))


@pytest.mark.parametrize("metric", METRIC_NAMES)
@pytest.mark.parametrize("match", ["equal", "contains"])
@pytest.mark.parametrize("mode", ["unmerged", "merged"])
def test_a_merge_that_computes_nan_has_failed_under_every_metric(
    model, tokenizer, folders, metric, match, mode
):
    choices = (
        (("A", "1"), ("B", "2")) if metric.startswith(("choice", "multiple", "abstain")) else ()
    )
    examples = tuple(
        Example(str(i), f"{i}+1=", "A" if choices else str(i + 1), choices) for i in range(2)
    )
    task = Task("add", "1", metric, examples, max_new_tokens=2, match=match)
    problem = LoRAMergeProblem(model, folders, [task], tokenizer=tokenizer, mode=mode)
    scores = problem.evaluate(torch.tensor([[0.1, 0.1], [3e38, -3e38]]))
    assert scores[0].isfinite() and scores[1] == -torch.inf


def test_scores_that_are_not_finite_once_are_tried_again(problem):
    def second_of_three_is_infinite(scores):
        scores["add"][1:2] = torch.inf  # the second time there is one

    pop = torch.randn(3, 2)
    expected = problem.evaluate(pop)
    problem.cache.clear()
    problem.scorer = Scorer(problem.scorer, change=second_of_three_is_infinite)
    torch.testing.assert_close(problem.evaluate(pop), expected)
    assert problem.scorer.sizes == [3, 1]


def test_failures_are_the_worst_of_every_objective(model, tokenizer, folders):
    problem = LoRAMergeProblem(model, folders, [ADD, PICK], tokenizer=tokenizer, objectives="tasks")
    problem.scorer = Scorer(problem.scorer, *[RuntimeError("broken")] * 3)
    scores = problem.evaluate(torch.randn(2, 2))
    # Finite, whatever a log-probability may be: algorithms scale what they get.
    assert (scores[0] == -1e6).all() and (scores[1] > -100).all()


def test_input_that_cannot_be_used_is_no_failure_of_a_merge(problem):
    problem.scorer = Scorer(problem.scorer, ValueError("base: no chat template"))
    with pytest.raises(ValueError, match="no chat template"):
        problem.evaluate(torch.randn(2, 2))


def test_a_workflow_drives_it_and_its_state_holds_no_base_model(problem):
    torch.manual_seed(0)
    algorithm = EvoGM(
        4, -torch.ones(2), torch.ones(2), n_iters=1, epochs=5, hidden_dims=(8,), clamp=False
    )
    monitor = EvalMonitor(full_sol_history=True)
    workflow = StdWorkflow(algorithm, problem, monitor, opt_direction="max")
    workflow.init_step()
    for _ in range(3):
        workflow.step()
    best = monitor.get_best_solution()
    assert float(monitor.get_best_fitness()) == pytest.approx(
        float(problem.evaluate(best[None])[0])
    )
    assert float(monitor.get_best_fitness()) == max(
        float(f.max()) for f in monitor.get_fitness_history()
    )
    assert not any("problem" in name for name in workflow.state_dict())


def test_the_same_seed_gives_the_same_search(model, tokenizer, folders):
    def search():
        torch.manual_seed(5)
        monitor = EvalMonitor(full_sol_history=True)
        algorithm = EvoGM(
            4, -torch.ones(2), torch.ones(2), n_iters=1, epochs=5, hidden_dims=(8,), clamp=False
        )
        problem = LoRAMergeProblem(model, folders, [ADD], tokenizer=tokenizer, mode="unmerged")
        workflow = StdWorkflow(algorithm, problem, monitor, opt_direction="max")
        workflow.init_step()
        workflow.step()
        return torch.cat(monitor.get_solution_history()), torch.cat(monitor.get_fitness_history())

    for one, other in zip(search(), search(), strict=True):
        assert torch.equal(one, other)


def test_export_writes_an_adapter_and_says_how_exactly_it_reloads(problem, tmp_path):
    coefficients = torch.tensor([0.3, -0.9])
    assert problem.export(coefficients, tmp_path / "merge") < 1e-6
    again = LoRAMergeProblem(
        problem.language_model.model,
        [tmp_path / "merge"],
        [ADD],
        tokenizer=problem.language_model.tokenizer,
    )
    torch.testing.assert_close(
        again.score_tasks(torch.ones(1))["add"], problem.score_tasks(coefficients)["add"]
    )


def test_a_hub_repository_laid_out_as_the_papers_is_read(tmp_path, model, tokenizer, make_adapter):
    # base/ and experts/NAME/, as in TaoJiangCN/qwen2.5-1.5b-tulu-v2-lora-experts
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    for index, name in enumerate(("code", "cot")):
        make_adapter(name, seed=index)
    folders = sorted((tmp_path / "experts").iterdir())
    problem = LoRAMergeProblem(tmp_path / "base", folders, [ADD], dtype=torch.float32)
    direct = LoRAMergeProblem(model, folders, [ADD], tokenizer=tokenizer)
    assert [expert.name for expert in problem.experts] == ["code", "cot"]
    pop = torch.tensor([[0.5, 0.5]])
    torch.testing.assert_close(problem.evaluate(pop), direct.evaluate(pop))


@pytest.mark.parametrize("mode", ["unmerged", "merged", "auto"])
def test_another_default_device_does_not_matter(model, tokenizer, folders, mode):
    expected, found = (
        LoRAMergeProblem(model, folders, [ADD, PICK], tokenizer=tokenizer, mode=mode)
        for _ in range(2)
    )
    pop = torch.rand(3, 2)
    torch.set_default_device("meta")  # whatever is made on it holds no numbers
    try:
        scores = found.evaluate(pop)
    finally:
        torch.set_default_device(None)
    torch.testing.assert_close(scores, expected.evaluate(pop))


def test_bfloat16_scores_come_close_to_float32(tmp_path, model, tokenizer, folders):
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    pop = torch.tensor([[0.3, 0.2]])
    exact = LoRAMergeProblem(tmp_path / "base", folders, [ADD], dtype=torch.float32).evaluate(pop)
    half = LoRAMergeProblem(tmp_path / "base", folders, [ADD], dtype=torch.bfloat16)
    assert half.language_model.model.dtype == torch.bfloat16
    torch.testing.assert_close(half.evaluate(pop), exact, rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": []}, "experts: expected at least one adapter folder, found none"),
        ({"tasks": []}, "tasks: expected at least one"),
        ({"tasks": [ADD, ADD]}, "different names, found .*add.*add"),
        ({"tokenizer": None}, "tokenizer: expected one together with a loaded model"),
    ],
)
def test_what_is_missing_is_said(model, tokenizer, folders, change, message):
    arguments = {
        "base": model,
        "experts": folders,
        "tasks": [ADD],
        "tokenizer": tokenizer,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        LoRAMergeProblem(**arguments)


@pytest.mark.parametrize("method", ["evaluate", "cached_fitness", "score_together"])
@pytest.mark.parametrize("width", [1, 3])
def test_a_population_of_the_wrong_width_is_refused(problem, method, width):
    expected = r"expected \(P, 2\), one column per expert"
    with pytest.raises(ValueError, match=rf"{expected}, found \(4, {width}\)"):
        getattr(problem, method)(torch.zeros(4, width))


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 2)])
def test_coefficients_of_another_shape_are_neither_scored_nor_exported(problem, tmp_path, shape):
    coefficients = torch.ones(shape)
    with pytest.raises(ValueError, match="one column per expert"):
        problem.score_tasks(coefficients)
    with pytest.raises(ValueError, match="one column per expert"):
        problem.export(coefficients, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
