"""The published protocol: how the EvoGM paper's own code asks and scores its evaluation sets.

From the release of T. Jiang et al. (arXiv 2605.29295; github.com/JiangTao97/evogm, file
fusion_bench/tasks/qwen_eval.py), whose sets and prompts come from Model Swarms (Feng et al. 2024,
arXiv 2410.11163).

| sets | prompt | new tokens | score |
| --- | --- | ---: | --- |
| of multiple choice | that of `task.choice_prompt` | 10 | the key that `parse_published` finds |
| gsm8k | the bare question | 200 | the answer stands in the last ten words |
| nlgraph | the bare question | 10 | the answer stands in the output |

Decoding is greedy. What a model writes is cleaned first (`clean_output`). AbstainQA, which asks a
second time, is in `abstain_qa.py`.

Scores of this protocol and of `ours`, whose parser wants keys that stand alone and whose questions
without choices are asked as "Question: ... Answer:", cannot be compared.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from evox_evogm.problems.tasks.task import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHOICE_SETS = (
    "mmlu",
    "mmlu_pro",
    "hellaswag",
    "knowledge_crosswords",
    "truthfulqa",
    # Of the domains:
    "hearsay",
    "citation_prediction_classification",
    "medqa",
    "medmcqa",
    "scifact",
    "stem",
    "normad_country",
    "normad_value",
)
# Sets without choices: (match, new tokens).
FREE_ANSWER_SETS = {"gsm8k": ("last_10_words", 200), "nlgraph": ("contains", 10)}
SETS = (*CHOICE_SETS, *FREE_ANSWER_SETS)
WITH_WORKED_EXAMPLE = "knowledge_crosswords"  # the only set whose `icl_prompt` is read
NEW_TOKENS = 10  # of an answer to a question with choices

THOUGHT_ENDS = "</think>"
ROLE_TOKENS = ("<|im_end|>", "<|im_start|>", "<|endoftext|>")
ROLE_NAME = re.compile(r"\s*assistant\s*", re.IGNORECASE)

# Any blanks may stand before the letter, or none; a letter that goes on as a word is none.
EXPLICIT = re.compile(r"(?:answer\s*:|(?:answer|option)\s+is)\s*([a-d])\b", re.IGNORECASE)
# "The answer (is)" and "choose" in Chinese.
EXPLICIT_CHINESE = re.compile(r"(?:答案[是为]?|选择)\s*[:：]?\s*([a-d])\b", re.IGNORECASE)
END = 5  # characters of an output's beginning, and of its end, in which a key may stand
SHORT_OUTPUT = 40  # characters of an output in which the text of a choice counts


def published_set(stem: str, dataset: object) -> str:
    """The set that a file holds: by the name of the file, or else by what it says of itself.

    :param stem: of the file's name.
    :param dataset: what stands under `dataset` in the file.
    :raises ValueError: if neither names a set that the protocol knows.
    """
    named = str(dataset).lower().replace("-", "_")
    for name in (stem, named):
        if name in SETS:
            return name
    known = ", ".join(SETS)
    raise ValueError(
        f"expected a set of protocol published ({known}), found the file name {stem!r} and the "
        f"dataset {dataset!r}; rename the file, or set protocol: ours"
    )


def published_settings(set_name: str, given: Mapping) -> dict:
    """The settings of `Task` with which the protocol scores a set.

    :param set_name: one of `SETS`.
    :param given: settings that stand in place of them: `chat`, or `metric` for AbstainQA.
    :raises ValueError: if another one is given, which the protocol leaves no choice.
    """
    if set_name in FREE_ANSWER_SETS:
        match, max_new_tokens = FREE_ANSWER_SETS[set_name]
        settings = {"metric": "exact_match", "match": match, "max_new_tokens": max_new_tokens}
        metrics = ["exact_match"]
    else:
        settings = {"metric": "multiple_choice_generation", "max_new_tokens": NEW_TOKENS}
        metrics = ["multiple_choice_generation", "abstain_qa"]
    for name, value in given.items():
        if name == "metric" and value not in metrics:
            expected = f"expected metric {' or '.join(metrics)} with protocol published"
            raise ValueError(f"{expected}, found {value!r}; set protocol: ours")
        if name not in ("metric", "chat"):
            expected = f"expected no {name} with protocol published, which decides it"
            raise ValueError(f"{expected}, found {value!r}; set protocol: ours")
    return {**settings, **given, "protocol": "published"}


def ask_bare_questions(
    name: str, rows: Sequence[Mapping], examples: Sequence[Example]
) -> list[Example]:
    """The examples with their question as the prompt, and nothing else.

    :param name: of the task.
    :param rows: what the file holds of each example.
    :raises ValueError: if an example has choices.
    """
    bare = []
    for row, example in zip(rows, examples, strict=True):
        if example.choices:
            raise ValueError(
                f"task {name!r}, example {example.id!r}: expected a question without choices, "
                f"found {len(example.choices)}; protocol published scores this set by exact match"
            )
        bare.append(replace(example, prompt=str(row["question"])))
    return bare


def clean_output(text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """What is scored of a generated text.

    - What stands before the last `</think>` is dropped.
    - End, pad and role tokens are removed, and the name of the role that a chat begins with.
    - Blanks at both ends are removed.

    :param text: with special tokens.
    :param tokenizer: whose pad and end tokens are meant.
    """
    text = text.rpartition(THOUGHT_ENDS)[2]
    for token in (tokenizer.pad_token, tokenizer.eos_token, *ROLE_TOKENS):
        if token:
            text = text.replace(str(token), "")
    role = ROLE_NAME.match(text)
    if role:
        text = text[role.end() :]
    return text.strip()


def parse_published(output: str, choices: Mapping[str, str]) -> str | None:
    """The key that a generated answer names, or None. The attempts, in the release's order:

    1. The last "the answer is X", "answer: X", "answer is X" or "option is X", in whatever case, X
       one of A to D that does not go on as a word. So "the answer is a wren" names A. After these
       come the Chinese "the answer is X" and "choose X". The key that is found stands even if the
       question has no such choice.
    2. The first key of the question that stands in the first five characters, even within a word:
       "An apple" names A.
    3. The first key of the question that stands in the last five characters.
    4. In an output of at most 40 characters, the first choice whose text stands in it, in whatever
       case. An empty choice stands in every output.
    """
    output = output.strip()
    for pattern in (EXPLICIT, EXPLICIT_CHINESE):
        found = pattern.findall(output)
        if found:
            return found[-1].upper()
    for part in (output[:END], output[-END:]):
        for key in choices:
            if key in part:
                return key
    if len(output) > SHORT_OUTPUT:
        return None
    for key, text in choices.items():
        if text.lower() in output.lower():
            return key
    return None
