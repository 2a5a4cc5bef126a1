"""From answers to scores, margins and derivatives of cases."""

from collections.abc import Sequence

import torch

from evox_evogm.problems.tasks.harness.answers import Answered
from evox_evogm.problems.tasks.harness.example import place_of, source_of
from evox_evogm.problems.tasks.harness.metric import CHOICE
from evox_evogm.problems.tasks.harness.source import Answer, DocumentTokens, HarnessSource
from evox_evogm.problems.tasks.requests import Case


def score_answers(
    cases: Sequence[Case],
    documents: Sequence[DocumentTokens],
    answered: Answered,
    margins: torch.Tensor | None = None,
    derivatives: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score the answers to S cases, by the harness's own filters and metrics.

    :param documents: the requests of each case.
    :param answered: the answers to all of them.
    :param margins: an `(S,)` tensor to write to.
    :param derivatives: an `(S, n g)` tensor to write to, of the margins by the coefficients.
    :return: an `(S,)` float32 tensor, higher is better.
    """
    scores = score_by_source(cases, by_case(answered, documents))
    if margins is None and derivatives is None:
        return scores
    sizes = [len(tokens) for tokens in documents]
    values = [part.tolist() for part in answered.log_likelihoods.split(sizes)]
    leads = [part.tolist() for part in answered.leads.split(sizes)]
    found_margins = []
    for case, score, value, lead in zip(cases, scores.tolist(), values, leads, strict=True):
        metric = source_of(case.example).metric
        found_margins.append(metric.margin(place_of(case.example), score, value, lead))
    if margins is not None:
        margins.copy_(torch.tensor(found_margins))
    if derivatives is not None and answered.derivatives is not None:
        parts = answered.derivatives.split(sizes)
        for row, (case, part) in enumerate(zip(cases, parts, strict=True)):
            metric = source_of(case.example).metric
            place = place_of(case.example)
            if metric.kind == CHOICE:
                derivatives[row] = metric.lead_weights(place, values[row]).to(part) @ part
            else:
                derivatives[row] = part[metric.leading_instance(place, leads[row])]
    return scores


def by_case(answered: Answered, documents: Sequence[DocumentTokens]) -> list[list[Answer]]:
    """The answers to each case as the harness takes them."""
    log_likelihoods = answered.log_likelihoods.tolist()
    greedy = answered.greedy.tolist()
    answers = []
    number = 0
    for tokens in documents:
        of_case: list[Answer] = []
        for instance in tokens:
            if instance.generation is not None:
                of_case.append(answered.texts[number])
            elif instance.is_rolling:
                of_case.append(log_likelihoods[number])
            else:
                of_case.append((log_likelihoods[number], greedy[number]))
            number += 1
        answers.append(of_case)
    return answers


def score_by_source(cases: Sequence[Case], answers: Sequence[Sequence[Answer]]) -> torch.Tensor:
    """Scores `(S,)` of cases, those of one candidate and one harness task together.

    :param answers: to each case.
    """
    rows_of: dict[tuple[int, HarnessSource], list[int]] = {}
    for row, case in enumerate(cases):
        rows_of.setdefault((case.candidate, source_of(case.example)), []).append(row)
    scores = torch.zeros(len(cases))
    for (_, source), rows in rows_of.items():
        places = [place_of(cases[row].example) for row in rows]
        found = source.score(places, [answers[row] for row in rows])
        scores[rows] = torch.from_numpy(found).float()
    return scores
