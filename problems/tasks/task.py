"""A scored task is data: prompts, targets, a metric, a name and a version. `metrics.py` turns it
into scores.

The prompts of multiple-choice questions are those of the EvoGM paper (arXiv 2605.29295). Its
evaluation sets and prompts come from Model Swarms (Feng et al. 2024, arXiv 2410.11163).
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

METRIC_NAMES = (
    "choice_likelihood",
    "gold_log_probability",
    "exact_match",
    "multiple_choice_generation",
    "abstain_qa",
)
METRICS_OF_CHOICES = ("choice_likelihood", "multiple_choice_generation", "abstain_qa")
MATCHES = ("equal", "contains", "last_10_words")
CONTINUATIONS = ("key", "text")
PROTOCOLS = ("ours", "published")

BEST_OPTION = "Please choose an option that best answers the question."
INSTRUCTIONS = {  # by set; every other set gets BEST_OPTION
    "hellaswag": "Please choose an option that best completes the sentence.",
    "knowledge_crosswords": "",
}


@dataclass(frozen=True)
class Example:
    """One question.

    :param id: unique within a task.
    :param prompt: the text that the model continues.
    :param target: the text of a right answer, or for multiple choice the key of the right choice.
    :param choices: (key, text) pairs, empty where there are none.
    """

    id: str
    prompt: str
    target: str
    choices: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Task:
    """Examples that one metric scores. `metrics.py` says what each metric does.

    :param name: shown in reports; unique within a problem.
    :param version: of the data, so that scores are only compared when they mean the same.
    :param metric: one of `METRIC_NAMES`.
    :param examples: at least one, with different ids.
    :param max_new_tokens: the length of generated answers, in tokens.
    :param match: for `exact_match`, how the answer has to agree with the target: `"equal"`,
        `"contains"` (the target stands in the answer) or `"last_10_words"` (the target stands in
        its last ten space-separated words).
    :param continuation: what is scored of a choice: its `"key"` or its `"text"`.
    :param chat: put the prompt through the tokenizer's chat template.
    :param protocol: whose parser reads generated answers: `"ours"`, or `"published"`, that of the
        paper's code (`published.py`).
    :raises ValueError: if a setting is unknown, no example is given, or a metric needs choices that
        an example lacks.
    """

    name: str
    version: str
    metric: str
    examples: tuple[Example, ...]
    max_new_tokens: int = 16
    match: str = "equal"
    continuation: str = "key"
    chat: bool = False
    protocol: str = "ours"

    def __post_init__(self):
        self._check_types()
        self._check_names()
        if not self.examples:
            raise ValueError(f"task {self.name!r}: expected at least one example, found none")
        self._check_ids()
        if self.max_new_tokens < 1:
            self._refuse("max_new_tokens", "at least 1", self.max_new_tokens)
        for example in self.examples:
            self._check_example(example)

    def _check_types(self) -> None:
        texts = ("name", "metric", "match", "continuation", "protocol")
        for setting in texts:
            value = getattr(self, setting)
            if not isinstance(value, str):
                self._refuse(setting, "a text", value)
        count = self.max_new_tokens
        if not isinstance(count, int) or isinstance(count, bool):
            self._refuse("max_new_tokens", "a whole number", count)
        if not isinstance(self.chat, bool):
            self._refuse("chat", "true or false", self.chat)

    def _refuse(self, setting: str, expected: str, value) -> None:
        raise ValueError(
            f"task {self.name!r}: expected {setting} to be {expected}, found {value!r}"
        )

    def _check_names(self) -> None:
        allowed = {
            "metric": METRIC_NAMES,
            "match": MATCHES,
            "continuation": CONTINUATIONS,
            "protocol": PROTOCOLS,
        }
        for setting, names in allowed.items():
            value = getattr(self, setting)
            if value not in names:
                expected = f"expected one of {', '.join(names)}, found {value!r}"
                near = difflib.get_close_matches(value, names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"task {self.name!r}: {setting}: {expected}{hint}")

    def _check_ids(self) -> None:
        counts = Counter(example.id for example in self.examples)
        for id, count in counts.items():
            if count > 1:
                raise ValueError(
                    f"task {self.name!r}: expected different ids, found {id!r} more than once"
                )

    def _check_example(self, example: Example) -> None:
        where = f"task {self.name!r}, example {example.id!r}"
        if not example.target.strip():
            raise ValueError(f"{where}: expected an answer, found an empty text")
        keys = [key for key, _ in example.choices]
        needs_choices = self.metric in METRICS_OF_CHOICES
        if (needs_choices or keys) and example.target not in keys:
            known = ", ".join(keys) or "its choices (it has none)"
            raise ValueError(
                f"{where}: expected the answer to be one of {known}, found {example.target!r}"
            )

    def take(self, count: int) -> "Task":
        """The same task with its first `count` examples."""
        return replace(self, examples=self.examples[:count])


def answer_prompt(question: str) -> str:
    """The prompt of a question with a free answer."""
    return f"Question: {question}\nAnswer:"


def choice_prompt(
    question: str, choices: Mapping[str, str], *, instruction: str = BEST_OPTION, icl: str = ""
) -> str:
    """The paper's prompt of a multiple-choice question.

    :param choices: the text of each choice by its key.
    :param icl: worked examples, which go first.
    """
    lines = [icl, instruction, f"Question: {question}"]
    lines += [f"{key}: {text}" for key, text in choices.items()]
    lines.append("The answer is")
    return "\n".join(line for line in lines if line)


def check_protocol(name: str, protocol: object) -> None:
    """Refuse a protocol that is not known.

    :param name: of the task.
    :raises ValueError: naming the nearest that is known.
    """
    if protocol in PROTOCOLS:
        return
    near = difflib.get_close_matches(str(protocol), PROTOCOLS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    expected = f"expected one of {', '.join(PROTOCOLS)}"
    raise ValueError(f"task {name!r}: protocol: {expected}, found {protocol!r}{hint}")


def reflection_prompt(prompt: str, output: str) -> str:
    """The second prompt of AbstainQA: whether an answer to the first is true.

    :param output: the answer.
    """
    question = "Is the proposed answer true or false? Directly answer with true or false."
    return f"{prompt}\nProposed answer: {output}\n{question}"


def check_disjoint(name: str, dev: Sequence[Example], test: Sequence[Example]) -> None:
    """Refuse a task whose test questions also stand in dev.

    :raises ValueError: with the number of prompts that stand in both.
    """
    shared = {example.prompt for example in dev} & {example.prompt for example in test}
    if shared:
        raise ValueError(
            f"task {name!r}: expected dev and test to share no question, "
            f"found {len(shared)} of {len(test)} test questions in dev"
        )
