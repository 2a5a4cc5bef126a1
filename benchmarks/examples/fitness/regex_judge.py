"""Merges that answer in the form that was asked for, judged by regular expressions.

    evogm merge regex_judge.yaml --out runs/regex

An answer has a score of 1 if it matches. The margin is by how much more likely an answer in the
right form is than one in a wrong form, in nats, with the sign of the score: what the search learns
from where all answers are alike.
"""

import re

# Question, expression that the whole answer matches, an answer of the right form, and another one.
CASES = {
    "dev": [
        ("Write the date 3 May 2021 as YYYY-MM-DD.", r"\d{4}-\d{2}-\d{2}", "2021-05-03", "3 May"),
        ("Is seven even? Answer yes or no.", r"(?i)(yes|no)\.?", "no", "Seven is odd"),
        ("Give one number between 1 and 9.", r"[1-9]", "5", "five"),
    ],
    "test": [
        ("Write the date 9 July 1999 as YYYY-MM-DD.", r"\d{4}-\d{2}-\d{2}", "1999-07-09", "July 9"),
        ("Is six even? Answer yes or no.", r"(?i)(yes|no)\.?", "yes", "Six is even"),
        ("Give one number between 10 and 99.", r"[1-9]\d", "42", "forty-two"),
    ],
}


def score(model, split: str) -> dict[str, list[float]]:
    """:return: scores of 0 or 1, and margins in nats."""
    cases = CASES[split]
    prompts = [f"Question: {question}\nAnswer:" for question, _, _, _ in cases]
    answers = model.generate(prompts, max_new_tokens=16, stop=["\n"])
    right = model.log_probabilities(prompts, [good for _, _, good, _ in cases])
    wrong = model.log_probabilities(prompts, [bad for _, _, _, bad in cases])
    scores, margins = [], []
    for case, answer, lead in zip(cases, answers, (right - wrong).tolist(), strict=True):
        matches = re.fullmatch(case[1], answer.strip()) is not None
        scores.append(float(matches))
        margins.append(abs(lead) + 1e-6 if matches else -abs(lead))
    return {"scores": scores, "margins": margins}
