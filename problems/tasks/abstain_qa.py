"""The metric `abstain_qa`: answer a question, then say whether the answer is true.

The paper's AbstainQA (on mmlu), after S. Feng et al. 2024, arXiv 2402.00367, who call the mean of
its scores effective reliability.
"""

from collections.abc import Sequence

import torch

from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.choices import names_right_choice
from evox_evogm.problems.tasks.generated import generated_answers
from evox_evogm.problems.tasks.requests import (
    Case,
    candidates_of,
    cases_or_all,
    prompts_of,
    write_answer_derivatives,
)
from evox_evogm.problems.tasks.task import Task, reflection_prompt


def abstain_qa(
    task: Task,
    model: LanguageModel,
    cases: Sequence[Case] | None = None,
    *,
    margins: torch.Tensor | None = None,
    derivatives: torch.Tensor | None = None,
) -> torch.Tensor:
    """1 if the answer is right, -1 if it is wrong, 0 if the model abstains.

    Their mean is (answered right - answered wrong) / all. A model abstains if "false" stands in its
    reply to the second prompt, in whatever case. An answer that names no choice is wrong. The
    margin is the score.

    The second prompt holds the answer without blanks at its ends, and with `chat` it is a chat of
    its own. Its reply has as many tokens as the answer. (So it is in the release.)
    """
    cases = cases_or_all(task, cases)
    candidates = candidates_of(cases)
    answers = generated_answers(task, model, prompts_of(task, model, cases), candidates)
    second_prompts = []
    for case, answer in zip(cases, answers, strict=True):
        text = reflection_prompt(case.example.prompt, answer.strip())
        # Not kept: nearly every candidate has prompts of its own.
        second_prompts.append(model.prompt_tokens(text, chat=task.chat, keep=False))
    replies = generated_answers(task, model, second_prompts, candidates)
    scores = torch.zeros(len(cases))
    for row, (answer, reply) in enumerate(zip(answers, replies, strict=True)):
        if "false" not in reply.lower():
            is_right = names_right_choice(task, cases[row].example, answer)
            scores[row] = 1.0 if is_right else -1.0
    if margins is not None:
        margins.copy_(scores)
    if derivatives is not None:
        write_answer_derivatives(task, model, cases, derivatives)
    return scores
