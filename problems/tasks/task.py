"""A scored task is data: prompts, targets, a scoring rule, a name and a version. `scoring.py` turns it into scores.

Prompts of multiple-choice questions are those of the EvoGM paper (arXiv 2605.29295), whose evaluation sets and prompts
come from Model Swarms (Feng et al. 2024, arXiv 2410.11163).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

METRIC_NAMES = (
    "choice_likelihood",
    "gold_log_probability",
    "exact_match",
    "multiple_choice_generation",
)
MATCHES = ("equal", "contains", "last_10_words")
CONTINUATIONS = ("key", "text")

BEST_OPTION = "Please choose an option that best answers the question."
INSTRUCTIONS = {  # by set; every other set gets BEST_OPTION
    "hellaswag": "Please choose an option that best completes the sentence.",
    "knowledge_crosswords": "",
}


@dataclass(frozen=True)
class Example:
    """One question.

    `target` is the text that a right answer equals, or for multiple choice the key of the right choice;
    `choices` are (key, text) pairs, empty where there are none.
    """

    id: str
    prompt: str
    target: str
    choices: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Task:
    """Examples that one rule scores. See `scoring.METRIC_NAMES` for what each rule does.

    :param name: shown in reports; unique within a problem.
    :param version: of the data, so that scores are only compared when they mean the same.
    :param rule: one of `METRIC_NAMES`.
    :param examples: at least one.
    :param max_new_tokens: length of generated answers, in tokens.
    :param match: for `exact_match`, how the text has to agree: `"equal"`, `"contains"` (the target stands in the
        output) or `"last_10_words"` (it stands in the last ten space-separated words).
    :param continuation: for the likelihood rules, what is scored of a choice: its `"key"` or its `"text"`.
    :param chat: put the prompt through the tokenizer's chat template.
    :raises ValueError: if a setting is unknown, no example is given, or a rule that needs choices has none.
    """

    name: str
    version: str
    metric: str
    examples: tuple[Example, ...]
    max_new_tokens: int = 16
    match: str = "equal"
    continuation: str = "key"
    chat: bool = False

    def __post_init__(self):
        kinds = {
            "name": str,
            "metric": str,
            "match": str,
            "continuation": str,
            "max_new_tokens": int,
            "chat": bool,
        }
        for setting, kind in kinds.items():
            value = getattr(self, setting)
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                names = {str: "a text", int: "a whole number", bool: "true or false"}
                raise ValueError(
                    f"task {self.name!r}: expected {setting} to be {names[kind]}, found {value!r}"
                )
        for setting, allowed in (
            ("metric", METRIC_NAMES),
            ("match", MATCHES),
            ("continuation", CONTINUATIONS),
        ):
            if getattr(self, setting) not in allowed:
                raise ValueError(
                    f"task {self.name!r}: {setting} is one of {', '.join(allowed)}, found {getattr(self, setting)!r}"
                )
        if not self.examples:
            raise ValueError(f"task {self.name!r}: expected at least one example, found none")
        twice = [
            name
            for name, count in Counter(example.id for example in self.examples).items()
            if count > 1
        ]
        if twice:
            raise ValueError(
                f"task {self.name!r}: expected different ids, found {twice[0]!r} more than once"
            )
        if self.max_new_tokens < 1:
            raise ValueError(
                f"task {self.name!r}: max_new_tokens must be at least 1, found {self.max_new_tokens}"
            )
        needs_choices = self.metric in ("choice_likelihood", "multiple_choice_generation")
        for example in self.examples:
            if not example.target.strip():
                raise ValueError(
                    f"task {self.name!r}, example {example.id!r}: expected an answer, found an empty text"
                )
            keys = [key for key, _ in example.choices]
            if (needs_choices or keys) and example.target not in keys:
                raise ValueError(
                    f"task {self.name!r}, example {example.id!r}: expected the answer to be one of "
                    f"{', '.join(keys) or 'its choices (it has none)'}, found {example.target!r}"
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
    """The paper's prompt of a multiple-choice question; `icl` holds worked examples and goes first."""
    lines = [
        icl,
        instruction,
        f"Question: {question}",
        *(f"{key}: {text}" for key, text in choices.items()),
    ]
    return "\n".join([line for line in lines if line] + ["The answer is"])


def check_disjoint(name: str, dev: Sequence[Example], test: Sequence[Example]) -> None:
    """Refuse a task whose test questions were already seen in dev.

    :raises ValueError: naming how many prompts stand in both.
    """
    shared = {example.prompt for example in dev} & {example.prompt for example in test}
    if shared:
        raise ValueError(
            f"task {name!r}: expected dev and test to share no question, "
            f"found {len(shared)} of {len(test)} test questions in dev"
        )
