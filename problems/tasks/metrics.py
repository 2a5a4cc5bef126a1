"""The metrics: each turns a task and a language model into one number per example, better when
higher.

| metric | score of an example |
| --- | --- |
| `choice_likelihood` | 1 if the right choice has the largest summed log-probability, else 0 |
| `gold_log_probability` | mean log-probability in nats per token of the right answer |
| `exact_match` | 1 if the greedy answer agrees with the target (`Task.match`), else 0 |
| `multiple_choice_generation` | 1 if the key parsed from the greedy answer is right, else 0 |
| `abstain_qa` | 1 if that key is right, -1 if it is wrong, 0 if the model then abstains |

The first two need forward passes over prompts only. The third decodes where such a pass does not
decide the score. The last two are the EvoGM paper's (arXiv 2605.29295), with ten new tokens.
"""

from collections.abc import Callable, Mapping, Sequence

import torch

from evox_evogm.problems.inference.derivatives import log_probabilities
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.prompts import Tokens
from evox_evogm.problems.inference.scored_model import ScoredModel
from evox_evogm.problems.inference.shared_prefixes import LEAST_SAVING, common_prefix
from evox_evogm.problems.inference.texts import reading_texts
from evox_evogm.problems.tasks.abstain_qa import abstain_qa
from evox_evogm.problems.tasks.choices import choice_likelihood, multiple_choice_generation
from evox_evogm.problems.tasks.custom_task import CustomTask
from evox_evogm.problems.tasks.exact_match import exact_match
from evox_evogm.problems.tasks.requests import Case, answer_request, candidates_of, cases_or_all
from evox_evogm.problems.tasks.task import METRIC_NAMES, Task


def score_task(task: Task, model: ScoredModel, margins: torch.Tensor | None = None) -> torch.Tensor:
    """Score every example of a task.

    :param task: S examples and a metric.
    :param model: the language model.
    :param margins: an `(S,)` tensor on the CPU to write the margins to, see `METRICS_BY_SIGN`.
    :return: an `(S,)` float32 tensor on the CPU, higher is better.
    """
    return metric_of(task)(task, model, margins=margins)


def metric_of(task: Task) -> Callable[..., torch.Tensor]:
    """The function that scores a task, as in `METRICS`."""
    return type(task).score if isinstance(task, CustomTask) else METRICS[task.metric]


def score_tasks(
    tasks: Sequence[Task],
    model: ScoredModel,
    count: int,
    margins: Mapping[str, torch.Tensor],
    derivatives: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Score every example of some tasks for several candidates, whose requests share batches.

    Tasks of the same form share them too. This makes fewer and fuller passes, with more rows of the
    same length.

    :param model: the language model, inside `model.candidates(...)` if there are several.
    :param count: P, the number of candidates.
    :param margins: by task name a `(P, S)` tensor on the CPU to write to, as in `score_task`.
    :param derivatives: by task name a `(P, S, n g)` tensor on the CPU to write to, see
        `METRICS`; None if there are to be none.
    :return: by task name a `(P, S)` float32 tensor on the CPU, higher is better.
    """
    scores: dict[str, torch.Tensor] = {}
    for group in group_tasks(tasks, model):
        cases = []
        for candidate in range(count):
            for task in group:
                cases += [Case(candidate, example) for example in task.examples]
        group_margins = torch.zeros(len(cases))
        metric = metric_of(group[0])
        group_derivatives = None
        if derivatives is not None:
            width = derivatives[group[0].name].shape[-1]
            group_derivatives = torch.zeros(len(cases), width)
        group_scores = metric(
            group[0], model, cases, margins=group_margins, derivatives=group_derivatives
        )
        sizes = [len(task.examples) for task in group]
        scores_by_task = group_scores.view(count, -1).split(sizes, 1)  # (P, S) each
        margins_by_task = group_margins.view(count, -1).split(sizes, 1)
        for index, task in enumerate(group):
            scores[task.name] = scores_by_task[index]
            margins[task.name].copy_(margins_by_task[index])
        if derivatives is not None and group_derivatives is not None:
            parts = group_derivatives.view(count, -1, group_derivatives.shape[-1]).split(sizes, 1)
            for task, part in zip(group, parts, strict=True):
                derivatives[task.name].copy_(part)
    return scores


def group_tasks(tasks: Sequence[Task], model: ScoredModel) -> list[list[Task]]:
    """Groups of tasks that share batches: they agree in all settings of the metric.

    A task whose prompts have a long common prefix stays alone, so that the prefix runs once.
    """
    groups: dict[tuple, list[Task]] = {}
    for task in tasks:
        if isinstance(task, CustomTask):
            groups.setdefault(task.form(model), []).append(task)
            continue
        form = (
            task.metric,
            task.match,
            task.continuation,
            task.chat,
            task.max_new_tokens,
            task.protocol,
            shared_prompt_prefix(task, reading_texts(model)),
        )
        groups.setdefault(form, []).append(task)
    return list(groups.values())


def shared_prompt_prefix(task: Task, model: LanguageModel) -> tuple[int, ...]:
    """The tokens that all prompts of a task begin with.

    Empty if a pass of their own would save less than `LEAST_SAVING` of the tokens.
    """
    prompts = [model.prompt_tokens(example.prompt, chat=task.chat) for example in task.examples]
    return long_common_prefix(prompts)


def long_common_prefix(prompts: Sequence[Tokens]) -> Tokens:
    """The tokens that all prompts begin with, or none, see `shared_prompt_prefix`."""
    length = common_prefix(prompts)
    saved = (len(prompts) - 1) * length
    total = sum(len(prompt) for prompt in prompts)
    if saved > LEAST_SAVING * total:
        return prompts[0][:length]
    return ()


def gold_log_probability(
    task: Task,
    model: LanguageModel,
    cases: Sequence[Case] | None = None,
    *,
    margins: torch.Tensor | None = None,
    derivatives: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean log-probability in nats per token of the right answer, which is also the margin."""
    cases = cases_or_all(task, cases)
    requests = [answer_request(task, model, case.example) for case in cases]
    lengths = torch.tensor([len(answer) for _, answer in requests])
    value_of = None if derivatives is None else log_probabilities
    likelihoods = model.likelihoods(requests, candidates_of(cases), value_of)
    scores = likelihoods.log_probability / lengths
    if derivatives is not None:
        derivatives.copy_(likelihoods.derivatives / lengths[:, None])
    if margins is not None:
        margins.copy_(scores)
    return scores


# Each takes a task, the model and cases. It writes margins where it is given a tensor for them, and
# where it is given one for derivatives, those by the coefficients of the case's candidate:
# - of a smooth form of the margin,
# - or, where a text has no margin, of the mean log-probability of its tokens.
METRICS: dict[str, Callable[..., torch.Tensor]] = {
    "choice_likelihood": choice_likelihood,
    "gold_log_probability": gold_log_probability,
    "exact_match": exact_match,
    "multiple_choice_generation": multiple_choice_generation,
    "abstain_qa": abstain_qa,
}
assert set(METRICS) == set(METRIC_NAMES)
