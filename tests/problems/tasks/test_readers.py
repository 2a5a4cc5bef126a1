"""What a reader makes of a file, with prompts written out in full."""

import hashlib
import json
from pathlib import Path

import pytest

from evox_evogm.problems.tasks.readers import (
    read_json_lines,
    read_reasoning_gym,
    read_swarm_eval,
    reasoning_gym_rows,
    split_of,
)
from evox_evogm.problems.tasks.task import Example

BIRDS = {"A": "a dog", "B": "a wren"}
SWARM_EVAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "swarm_eval"


@pytest.fixture
def write_set(tmp_path):
    """A function that writes a file of Model Swarms with one dev and one test example."""

    def write(stem, *, choices=None, answer="B", **more):
        rows = []
        for question in ("Which sings?", "Which flies?"):
            row = {"question": question, "answer": answer}
            if choices:
                row["choices"] = choices
            rows.append(row)
        path = tmp_path / f"{stem}.json"
        path.write_text(json.dumps({"dev": rows[:1], "test": rows[1:], **more}), encoding="utf-8")
        return path

    return write


@pytest.fixture
def write_lines(tmp_path):
    """A function that writes a file of lines, each an object or a text as it stands."""

    def write(name, *lines):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        texts = []
        for line in lines:
            text = line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)
            texts.append(text + "\n")
        path.write_text("".join(texts), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("stem", "icl", "prompt"),
    [
        (
            "mmlu",
            None,
            "Please choose an option that best answers the question.\n"
            "Question: Which sings?\nA: a dog\nB: a wren\nThe answer is",
        ),
        (
            "medqa",
            "An example.",
            "An example.\nPlease choose an option that best answers the question.\n"
            "Question: Which sings?\nA: a dog\nB: a wren\nThe answer is",
        ),
        (
            "hellaswag",
            None,
            "Please choose an option that best completes the sentence.\n"
            "Question: Which sings?\nA: a dog\nB: a wren\nThe answer is",
        ),
        (
            "knowledge_crosswords",
            "Question: Which barks?\nA: a dog\nB: a wren\nThe answer is A.",
            "Question: Which barks?\nA: a dog\nB: a wren\nThe answer is A.\n"
            "Question: Which sings?\nA: a dog\nB: a wren\nThe answer is",
        ),
    ],
)
def test_a_multiple_choice_set_has_the_prompt_of_the_paper(write_set, stem, icl, prompt):
    more = {"icl_prompt": icl} if icl else {}
    dev, test = read_swarm_eval(write_set(stem, choices=BIRDS, **more))
    assert dev.examples[0].prompt == prompt
    assert test.examples[0].prompt == prompt.replace("Which sings?", "Which flies?")
    assert dev.examples[0].choices == (("A", "a dog"), ("B", "a wren"))
    assert dev.examples[0].target == "B"
    for task in (dev, test):
        assert (task.metric, task.max_new_tokens) == ("multiple_choice_generation", 10)


@pytest.mark.parametrize(
    ("stem", "match", "tokens"),
    [("gsm8k", "last_10_words", 200), ("nlgraph", "contains", 10), ("other", "equal", 16)],
)
def test_a_set_of_free_answers_has_its_metric_and_length(write_set, stem, match, tokens):
    for task in read_swarm_eval(write_set(stem, answer="150")):
        assert (task.metric, task.match, task.max_new_tokens) == ("exact_match", match, tokens)
        assert (task.examples[0].target, task.examples[0].choices) == ("150", ())
    assert task.examples[0].prompt == "Question: Which flies?\nAnswer:"


def test_settings_replace_those_of_the_paper_and_a_name_keeps_its_prompt(write_set):
    path = write_set("hellaswag", choices=BIRDS)
    settings = {"metric": "choice_likelihood", "continuation": "text", "chat": True}
    dev, _ = read_swarm_eval(path, name="mine", **settings)
    assert dev.name == "mine"
    for setting, value in settings.items():
        assert getattr(dev, setting) == value
    instruction = "Please choose an option that best completes the sentence.\n"
    assert dev.examples[0].prompt.startswith(instruction)


def test_without_a_name_the_file_names_the_set(write_set):
    assert read_swarm_eval(write_set("mmlu", choices=BIRDS))[0].name == "mmlu"


def test_numbers_as_answers_become_their_text(write_set):
    assert read_swarm_eval(write_set("gsm8k", answer=150))[0].examples[0].target == "150"


@pytest.mark.parametrize(
    "change", [{"choices": {**BIRDS, "A": "a cat"}}, {"answer": "A"}, {"icl_prompt": "Look:"}]
)
def test_the_version_changes_with_a_choice_an_answer_or_a_prompt(write_set, change):
    dev, test = read_swarm_eval(write_set("set", choices=BIRDS))
    assert dev.version == test.version
    changed, _ = read_swarm_eval(write_set("set", **{"choices": BIRDS, **change}))
    assert changed.version != dev.version


def test_the_version_does_not_depend_on_where_the_file_lies(write_set, write_lines, tmp_path):
    here = write_set("set", choices=BIRDS)
    (tmp_path / "moved").mkdir()
    there = tmp_path / "moved" / "set.json"
    there.write_bytes(here.read_bytes())
    assert read_swarm_eval(there)[0].version == read_swarm_eval(here)[0].version
    dev, test = ({"question": question, "answer": "a"} for question in "pq")
    here = read_json_lines(write_lines("dev.jsonl", dev), write_lines("test.jsonl", test))
    there = read_json_lines(
        write_lines("moved/dev.jsonl", dev), write_lines("moved/test.jsonl", test)
    )
    assert there[0].version == here[0].version


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "bad.json: expected an object with the lists dev and test"),
        ('{"dev": []}', "bad.json: expected an object with the lists dev and test"),
        ("{dev: []}", "bad.json: expected JSON, found .* \\(column 2\\)$"),
        ('{"dev": [],\n"test": ', "bad.json: expected JSON, found .* \\(line 2, column 9\\)"),
        (
            '{"dev": [], "test": [{"question": "r", "answer": "a"}, "s"]}',
            "bad.json, test 1: expected an object with question and answer, found str",
        ),
        (
            '{"dev": [{"question": "q"}], "test": []}',
            "bad.json, dev 0: expected a text under 'answer', found None",
        ),
        ('{"dev": [], "test": []}', "task 'bad': expected at least one example in dev, found none"),
    ],
)
def test_a_bad_file_is_refused_with_the_place_of_the_fault(tmp_path, content, message):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_swarm_eval(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="task 'mmlu': expected a file, found none at .*mmlu.json"):
        read_swarm_eval(tmp_path / "mmlu.json")


def test_text_in_another_encoding_is_refused(tmp_path, write_lines):
    (tmp_path / "dev.jsonl").write_bytes('{"question": "é", "answer": "a"}'.encode("latin-1"))
    with pytest.raises(ValueError, match="task 'dev': expected UTF-8 text, found .*dev.jsonl"):
        read_json_lines(
            tmp_path / "dev.jsonl", write_lines("test.jsonl", {"question": "q", "answer": "a"})
        )


@pytest.mark.parametrize("choices", [None, BIRDS])
def test_test_questions_that_stand_in_dev_are_refused(tmp_path, write_lines, choices):
    rows = [{"question": question, "answer": "B"} for question in "pqrst"]
    if choices:
        rows = [{**row, "choices": choices} for row in rows]
    (tmp_path / "set.json").write_text(json.dumps({"dev": rows[:3], "test": rows[1:]}))
    message = (
        "task 'set': expected dev and test to share no question, found 2 of 4 test questions in dev"
    )
    with pytest.raises(ValueError, match=message):
        read_swarm_eval(tmp_path / "set.json")
    with pytest.raises(ValueError, match=message):
        read_json_lines(
            write_lines("dev.jsonl", *rows[:3]), write_lines("test.jsonl", *rows[1:]), name="set"
        )


def test_json_lines_without_choices_are_free_answers(write_lines):
    one = {"question": "1+1?", "answer": 2, "id": "first"}
    other = {"question": "1+2?", "answer": "3"}
    dev, test = read_json_lines(
        write_lines("sums.jsonl", one, "", other),
        write_lines("test.jsonl", {"question": "2+2?", "answer": "4"}),
    )
    assert (dev.name, dev.metric) == ("sums", "exact_match")
    assert (dev.match, dev.max_new_tokens) == ("equal", 16)
    assert dev.examples == (
        Example("first", "Question: 1+1?\nAnswer:", "2"),
        Example("3", "Question: 1+2?\nAnswer:", "3"),  # the number of its line
    )
    assert test.examples == (Example("1", "Question: 2+2?\nAnswer:", "4"),)


@pytest.mark.parametrize("choices", [BIRDS, ["a dog", "a wren"]])
def test_json_lines_take_choices_as_a_table_or_as_a_list(write_lines, choices):
    dev, test = read_json_lines(
        write_lines("dev.jsonl", {"question": "Which sings?", "choices": choices, "answer": "B"}),
        write_lines("test.jsonl", {"question": "Which barks?", "choices": choices, "answer": "A"}),
        name="birds",
        max_new_tokens=3,
    )
    assert (dev.name, dev.metric, dev.max_new_tokens) == ("birds", "multiple_choice_generation", 3)
    assert dev.examples[0].choices == (("A", "a dog"), ("B", "a wren"))
    assert dev.examples[0].prompt == (
        "Please choose an option that best answers the question.\n"
        "Question: Which sings?\nA: a dog\nB: a wren\nThe answer is"
    )
    assert (dev.examples[0].target, test.examples[0].target) == ("B", "A")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_only_line_ends_end_a_json_line(write_lines, separator):
    # JSON allows these characters inside a text, and str.splitlines would cut there.
    dev, _ = read_json_lines(
        write_lines("dev.jsonl", {"question": f"one{separator}two", "answer": "a"}),
        write_lines("test.jsonl", {"question": "three", "answer": "b"}),
    )
    assert dev.examples[0].prompt == f"Question: one{separator}two\nAnswer:"


def test_json_lines_with_windows_line_ends_are_read(tmp_path, write_lines):
    (tmp_path / "dev.jsonl").write_bytes(
        b'{"question": "p", "answer": "a"}\r\n{"question": "q", "answer": "b"}\r\n'
    )
    dev, _ = read_json_lines(
        tmp_path / "dev.jsonl", write_lines("test.jsonl", {"question": "r", "answer": "c"})
    )
    assert [example.target for example in dev.examples] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{question: 1}", "expected JSON, found Expecting property name"),
        ('{"question": "q",', "expected JSON"),
        ('["q", "a"]', "expected an object with question and answer, found list"),
        ({"answer": "a"}, "expected a text under 'question', found None"),
        ({"question": "q"}, "expected a text under 'answer', found None"),
        ({"question": "q", "answer": True}, "expected a text under 'answer', found True"),
        ({"question": ["q"], "answer": "a"}, r"expected a text under 'question', found \['q'\]"),
        (
            {"question": "q", "answer": "A", "choices": "a or b"},
            "expected choices as key -> text or a list of texts",
        ),
        (
            {"question": "q", "answer": "A", "choices": {"A": 1}},
            "expected choices as key -> text or a list of texts",
        ),
        (
            {"question": "q", "answer": "A", "choices": [1, 2]},
            "expected choices as key -> text or a list of texts",
        ),
        (
            {"question": "q", "answer": "C", "choices": ["x", "y"]},
            "expected the answer to be one of A, B, found 'C'",
        ),
    ],
)
def test_a_bad_line_is_refused_with_its_number(write_lines, line, message):
    good = {"question": "p", "answer": "A", "choices": ["x", "y"]}
    test = write_lines("test.jsonl", {"question": "r", "answer": "A", "choices": ["x", "y"]})
    with pytest.raises(
        ValueError, match=rf"(dev\.jsonl, line 3|task 'dev', example '3'): {message}"
    ) as caught:
        read_json_lines(write_lines("dev.jsonl", good, "", line), test)
    assert "\n" not in str(caught.value)


def test_the_same_seed_makes_the_same_reasoning_gym_questions():
    one, other = (read_reasoning_gym("chain_sum", dev=5, test=7, seed=3) for _ in range(2))
    assert one == other
    assert [len(task.examples) for task in one] == [5, 7]
    assert (one[0].name, one[0].metric, one[0].match) == ("chain_sum", "exact_match", "equal")
    assert one[0].version.startswith("reasoning-gym ")


def test_a_longer_task_begins_with_the_shorter_one():
    short, _ = read_reasoning_gym("chain_sum", dev=3, test=3)
    long, _ = read_reasoning_gym("chain_sum", dev=8, test=8)
    assert long.examples[:3] == short.examples


def test_another_seed_makes_other_questions():
    prompts = []
    for seed in range(3):
        dev, test = read_reasoning_gym("chain_sum", dev=20, test=20, seed=seed)
        prompts.append({example.prompt for example in dev.examples + test.examples})
    assert len(prompts[0] & prompts[1]) < 10
    assert len(prompts[1] & prompts[2]) < 10


def test_a_reasoning_gym_answer_is_that_of_its_question():
    for task in read_reasoning_gym("chain_sum", dev=10, test=10):
        for example in task.examples:
            terms = example.prompt.split(": ")[-1].split(" =")[0]
            signed_terms = terms.replace("- ", "-").replace("+ ", "").split()
            assert int(example.target) == sum(int(term) for term in signed_terms)


@pytest.mark.parametrize("task", ["chain_sum", "coin_flip"])
def test_no_reasoning_gym_question_is_in_two_splits_whatever_the_seeds(task):
    questions = {"dev": set(), "test": set(), "train": set()}
    for split, found in questions.items():
        for seed in range(4):
            rows = reasoning_gym_rows(task, split, seed=seed)
            of_one_seed = [next(rows)["question"] for _ in range(60)]
            assert len(set(of_one_seed)) == 60
            found.update(of_one_seed)
    assert len(set.union(*questions.values())) == sum(map(len, questions.values()))


def test_options_reach_the_reasoning_gym_data_set():
    options = {"min_terms": 5, "max_terms": 5}
    dev, _ = read_reasoning_gym("chain_sum", dev=5, test=5, options=options)
    for example in dev.examples:
        assert example.prompt.count(" + ") + example.prompt.count(" - ") == 4


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("chain_some", {}, "reasoning-gym task 'chain_some' with options {}: .*chain_some"),
        (
            "chain_sum",
            {"terms": 3},
            "reasoning-gym task 'chain_sum' with options {'terms': 3}: .*terms",
        ),
        (
            "chain_sum",
            {"min_terms": 9, "max_terms": 2},
            "reasoning-gym task 'chain_sum' with options .*: .*max_terms",
        ),
        # Ten digits, two signs: about 200 questions in all, of which a fifth is dev.
        (
            "chain_sum",
            {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
            r"reasoning-gym task 'chain_sum': found only \d\d different questions in split 'dev'",
        ),
    ],
)
def test_a_reasoning_gym_task_that_cannot_be_made_is_refused(task, options, message):
    with pytest.raises(ValueError, match=message):
        read_reasoning_gym(task, dev=500, test=1, options=options)


def test_the_splits_take_a_fifth_three_tenths_and_a_half_of_all_questions():
    splits = [split_of(f"What is {number} + 1?") for number in range(5000)]
    for split, share in (("dev", 0.2), ("test", 0.3), ("train", 0.5)):
        assert splits.count(split) / 5000 == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(
    ("number", "percent", "split"),
    [
        (211, 0, "dev"),
        (52, 19, "dev"),
        (148, 20, "test"),
        (68, 49, "test"),
        (35, 50, "train"),
        (99, 99, "train"),
    ],
)
def test_a_question_keeps_its_split_for_ever(number, percent, split):
    # Experts were trained on "train". Another hash or border would put their questions into a test.
    question = f"What is {number} + 1?"
    digest = hashlib.sha256(question.encode()).hexdigest()
    assert int(digest[:16], 16) % 100 == percent
    assert split_of(question) == split


@pytest.mark.slow  # the whole sets lie beside a checkout, not in it
@pytest.mark.skipif(
    not SWARM_EVAL.is_dir(), reason=f"the evaluation sets of Model Swarms are not at {SWARM_EVAL}"
)
class TestPublishedSets:
    # Seven files for the paper's eight tasks: AbstainQA is asked on mmlu. Sizes: its table 9.
    @pytest.mark.parametrize(
        ("name", "dev_size", "test_size"),
        [
            ("mmlu", 200, 1000),
            ("mmlu_pro", 70, 1000),
            ("hellaswag", 200, 1000),
            ("knowledge_crosswords", 200, 1000),
            ("gsm8k", 200, 1000),
            ("nlgraph", 200, 1000),
            ("truthfulqa", 200, 617),
        ],
    )
    def test_the_papers_sets_have_its_sizes_and_disjoint_splits(self, name, dev_size, test_size):
        dev, test = read_swarm_eval(SWARM_EVAL / f"{name}.json")
        assert (len(dev.examples), len(test.examples)) == (dev_size, test_size)
        dev_prompts = {example.prompt for example in dev.examples}
        assert dev_prompts.isdisjoint(example.prompt for example in test.examples)

    def test_hearsay_is_refused_because_its_test_questions_are_its_dev_questions(self):
        with pytest.raises(
            ValueError, match="task 'hearsay': .* found 94 of 94 test questions in dev"
        ):
            read_swarm_eval(SWARM_EVAL / "hearsay.json")
