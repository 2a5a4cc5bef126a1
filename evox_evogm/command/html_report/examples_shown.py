"""The prompts and answers that the page shows, with a mark of what is right."""

from typing import NamedTuple

from evox_evogm.command.html_report.formats import percent, short
from evox_evogm.command.html_report.run_data import ZERO_OR_ONE, RunData
from evox_evogm.command.scores import label


class ShownAnswer(NamedTuple):
    """What one model answers."""

    model: str
    text: str
    verdict: str
    """right, wrong, or the score."""
    is_right: bool | None
    """None where the score is no yes or no."""
    share: str
    """The probability of the chosen choice, or nothing."""


class ShownExample(NamedTuple):
    """A prompt with the answers of base, best expert and merge."""

    task: str
    id: str
    prompt: str
    expected: str
    answers: list[ShownAnswer]


class ShownExamples(NamedTuple):
    """The examples, or why there are none."""

    sentence: str
    examples: list[ShownExample]


def shown_examples(run: RunData) -> ShownExamples:
    """The examples of `report_data.json`."""
    data = run.data.get("examples")
    if data is None:
        return ShownExamples("This run has no answers to show.", [])
    if "failure" in data:
        return ShownExamples(f"There are no answers to show: {data['failure']}", [])
    expert = label("expert", data["expert"])
    names = {"base": "base", "expert": f"best expert ({expert})", "merge": "merge"}
    examples = []
    for example in data["shown"]:
        answers = []
        for model, name in names.items():
            answers.append(_answer(example, model, name))
        examples.append(
            ShownExample(
                example["task"], example["id"], example["prompt"], example["expected"], answers
            )
        )
    return ShownExamples(_sentence(data, expert), examples)


def _answer(example: dict, model: str, name: str) -> ShownAnswer:
    score, answer = float(example["scores"][model]), example["answers"][model]
    is_right = None
    verdict = f"score {short(score)}"
    if example["metric"] in ZERO_OR_ONE:
        is_right = score > 0.5
        verdict = "right" if is_right else "wrong"
    share = "" if answer["share"] is None else f"{percent(float(answer['share']))} of the choices"
    return ShownAnswer(name, answer["text"], verdict, is_right, share)


def _sentence(data: dict, expert: str) -> str:
    counts = data["counts"]
    total = sum(counts.values())
    return (
        f"Of {total} test examples, the merge scores higher than the best expert ({expert}) in "
        f"{counts['merge over expert']} and lower in {counts['expert over merge']}. Those shown "
        "were chosen so that base, expert and merge differ, wins and losses in turn; they do not "
        "stand for all. Answers are greedy, and cut after a few words."
    )
