"""The correlation of answers that are numbers, against scipy."""

import random

import pytest
import torch
from scipy.stats import spearmanr

from evox_evogm.problems.tasks.metrics import score_tasks
from evox_evogm.problems.tasks.readers import read_json_lines
from evox_evogm.problems.tasks.spearman import (
    SpearmanTask,
    mean_ranks,
    parse_number,
    parts_of_correlation,
)
from evox_evogm.problems.tasks.task import Example


def task_of(targets, **settings):
    rows = enumerate(targets)
    examples = tuple(Example(str(row), f"rate pair {row}", target) for row, target in rows)
    return SpearmanTask("stsb", "1", "spearman", examples, **settings)


class Answers:
    """In place of a model: answers by candidate and prompt."""

    def __init__(self, texts):
        self.texts = texts  # per candidate, by prompt

    def prompt_tokens(self, prompt, *, chat=False):
        return (int(prompt.split()[-1]),)

    def generate(self, prompts, max_new_tokens, candidates):
        assert max_new_tokens == 16
        answers = zip(prompts, candidates, strict=True)
        return [self.texts[candidate][prompt[0]] for prompt, candidate in answers]


@pytest.mark.parametrize("decimals", [0, 1, 4])
def test_the_mean_of_the_parts_is_the_correlation(decimals):
    generator = random.Random(decimals)
    for size in (2, 3, 10, 50):
        one = [round(5 * generator.random(), decimals) for _ in range(size)]
        other = [round(generator.gauss(), decimals) for _ in range(size)]
        if len(set(one)) == 1 or len(set(other)) == 1:
            continue
        expected = spearmanr(one, other).statistic
        assert float(parts_of_correlation(one, other).mean()) == pytest.approx(expected, abs=1e-12)
    assert mean_ranks([3.0, 1.0, 3.0, 2.0]).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert parts_of_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]).tolist() == [0.0, 0.0, 0.0]


def test_every_candidate_has_the_correlation_of_its_own_answers():
    targets = ["0.0", "3.8", "5.0", "2.2", "2.2"]
    texts = [
        ["1.0", "4.0", " 4.8", "no idea", "2.5"],  # what is no number counts as 0
        ["5.0", "1.0", "0.2", "nan", "inf"],
        ["3.0"] * 5,
    ]
    task = task_of(targets)
    margins = {"stsb": torch.zeros(3, 5)}
    found = score_tasks([task], Answers(texts), 3, margins)["stsb"]
    numbers = [[1.0, 4.0, 4.8, 0.0, 2.5], [5.0, 1.0, 0.2, 0.0, 0.0]]
    for row, answers in enumerate(numbers):
        expected = spearmanr(answers, list(map(float, targets))).statistic
        assert found[row].tolist() == pytest.approx([expected] * 5, abs=1e-6)
        assert float(margins["stsb"][row].mean()) == pytest.approx(expected, abs=1e-6)
        assert margins["stsb"][row].std() > 0.1
    assert found[2].tolist() == [0.0] * 5


def test_a_number_is_what_python_reads_as_a_finite_one():
    texts = ["3.8", " -2 ", "1e3", "4.", "", "five", "3.8 of 5", "nan", "-inf"]
    found = [parse_number(text) for text in texts]
    assert found == [3.8, -2.0, 1000.0, 4.0, None, None, None, None, None]


def test_targets_have_to_be_numbers_that_differ():
    with pytest.raises(ValueError, match="example '1': expected a number as the answer .* 'high'"):
        task_of(["1", "high"])
    with pytest.raises(ValueError, match="expected answers that differ for spearman, found 2 in"):
        task_of(["2.0", "2"])
    with pytest.raises(ValueError, match="expected examples to be at least two, found 1"):
        task_of(["2.0"])
    assert task_of(["1", "2", "3"]).take(2).examples[-1].target == "2"


def test_json_lines_ask_the_bare_prompt_and_the_metric_makes_the_task(tmp_path):
    for split in ("dev", "test"):
        lines = [f'{{"prompt": "Rate {split} {row}.", "answer": {row}.5}}' for row in range(3)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    files = tmp_path / "dev.jsonl", tmp_path / "test.jsonl"
    dev, test = read_json_lines(*files, metric="spearman", max_new_tokens=9)
    assert isinstance(dev, SpearmanTask)
    assert (dev.scores_by_example, dev.may_be_negative, dev.max_new_tokens) == (False, True, 9)
    assert [example.prompt for example in test.examples] == [
        f"Rate test {row}." for row in range(3)
    ]
    assert dev.examples[2].target == "2.5"
    files[0].write_text('{"prompt": "a", "question": "b", "answer": "c"}')
    with pytest.raises(ValueError, match="expected a question or a prompt, found both"):
        read_json_lines(*files)
    files[0].write_text('{"prompt": "a", "answer": "A", "choices": ["1", "2"]}')
    with pytest.raises(ValueError, match="expected examples without choices for spearman"):
        read_json_lines(*files, metric="spearman")
    dev, _ = read_json_lines(*files, metric="exact_match")
    assert (dev.examples[0].prompt, dev.examples[0].choices[1]) == ("a", ("B", "2"))
