"""Reading tasks of the harness by name: documents of both splits, settings, and refusals."""

import importlib.metadata
import json
import sys
from dataclasses import replace

import pytest
from harness_tasks import metrics, write_rows, write_task

from evox_evogm.problems import read_lm_eval
from evox_evogm.problems.tasks.harness import package
from evox_evogm.problems.tasks.harness.documents import with_documents

pytestmark = pytest.mark.lengthy  # lm-eval takes seconds to import


@pytest.fixture
def read(tmp_path):
    """A function that writes a task of a kind and reads it."""

    def read_one(kind="choices", name=None, splits=("validation", "test"), changes=(), **settings):
        name = write_task(tmp_path / "tasks", name or kind, kind, splits, **dict(changes))
        return read_lm_eval(name, include_path=str(tmp_path / "tasks"), **settings)

    return read_one


def questions(task):
    return [example.prompt.split("\n")[-2] for example in task.examples]


def test_dev_comes_from_validation_and_test_is_what_the_harness_evaluates(read, tmp_path):
    dev, test = read()
    assert questions(dev)[0] == "Question: What colour has cat 0?"
    assert len(dev.examples) == len(test.examples) == 6
    rows = [json.loads(line) for line in (tmp_path / "tasks/test.jsonl").read_text().splitlines()]
    assert questions(test) == [f"Question: {row['question']}" for row in rows]
    assert dev.name == test.name == "choices"
    assert dev.metric == "acc"
    assert dev.version.startswith(f"lm-eval {importlib.metadata.version('lm_eval')}, version 1.0, ")


def test_training_documents_are_dev_where_the_harness_evaluates_validation(read):
    dev, test = read(splits=("training", "validation"))
    assert "cat 0?" in dev.examples[0].prompt
    assert "100?" in test.examples[0].prompt


def test_the_head_of_the_only_documents_is_dev_and_no_test(read):
    dev, test = read(splits=("test",), dev=2, test=3)
    assert [prompt.split()[-1] for prompt in questions(dev)] == ["0?", "1?"]
    assert [prompt.split()[-1] for prompt in questions(test)] == ["2?", "3?", "4?"]


def test_a_document_of_both_splits_is_only_in_test(read, tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_rows(folder / "validation.jsonl", 5)
    write_rows(folder / "test.jsonl", 2, start=3)
    dev, test = read()
    assert [prompt.split()[-1] for prompt in questions(dev)] == ["0?", "1?", "2?"]
    assert [prompt.split()[-1] for prompt in questions(test)] == ["3?", "4?"]
    assert dev.left_out == 2


def test_dev_is_shown_neither_itself_nor_a_test_document(read):
    """All worked examples are from the documents of which the head is dev."""
    dev, test = read(splits=("test",), dev=3, test=1, num_fewshot=2)
    for number, example in enumerate(dev.examples):
        assert example.prompt.count(f" {number}?") == 1
        assert " 3?" not in example.prompt
        assert example.prompt.count("Question:") == 3
    assert test.examples[0].prompt.count(" 3?") == 1


def test_few_shots_are_those_of_the_seed(read):
    one, same, other = [read(num_fewshot=2, fewshot_seed=seed)[1] for seed in (1, 1, 2)]
    assert one == same
    assert one.examples[0].requests_sha256 != other.examples[0].requests_sha256
    assert one.version != other.version


def test_what_is_asked_decides_the_digest(read):
    first, _ = read()
    again, _ = read()
    changed, _ = read(changes={"target_delimiter": ": "})
    assert repr(first) == repr(again)
    assert first.examples[0].prompt == changed.examples[0].prompt
    assert repr(replace(first, version="")) != repr(replace(changed, version=""))


def test_a_group_is_scored_as_one_task_with_documents_of_each(read, tmp_path):
    for name in ("one", "two"):
        write_task(tmp_path / "tasks", name, "choices")
    group = {"group": "both", "task": ["one", "two"]}
    (tmp_path / "tasks" / "both.yaml").write_text(json.dumps(group))
    dev, test = read_lm_eval("both", dev=5, test=4, include_path=str(tmp_path / "tasks"))
    assert [example.id for example in dev.examples] == [
        "one 0", "one 1", "one 2", "two 0", "two 1",
    ]  # fmt: skip
    assert [source.name for source in test.sources] == ["one", "two"]
    assert len(test.examples) == 4


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("targets", {}), ("choices", {"metric_list": metrics("acc", higher=False)})],
)
def test_a_group_whose_tasks_have_one_metric_in_two_ways_is_refused(tmp_path, kind, changes):
    folder = tmp_path / "tasks"
    write_task(folder, "one", "choices")
    write_task(folder, "two", kind, **changes)
    (folder / "both.yaml").write_text(json.dumps({"group": "both", "task": ["one", "two"]}))
    expected = "expected acc to score all tasks of the group in one way, found that it scores one"
    with pytest.raises(ValueError, match=expected):
        read_lm_eval("both", metric="acc", include_path=str(folder))


def test_a_changed_function_or_filter_changes_the_task(tmp_path):
    def read_content(name):
        return repr(replace(read_lm_eval(name, include_path=str(folder))[0], version=""))

    folder = tmp_path / "tasks"
    write_task(folder, "lengths", "lengths")
    before = read_content("lengths")
    assert read_content("lengths") == before
    scoring = folder / "scoring.py"
    scoring.write_text(scoring.read_text().replace("100", "200"))
    assert read_content("lengths") != before
    write_task(folder, "answers", "answers")
    before = read_content("answers")
    path = folder / "answers.yaml"
    path.write_text(path.read_text().replace("([a-z])", "([a-c])"))
    assert read_content("answers") != before


def test_indices_of_worked_examples_choose_them_once(read):
    """From 6 documents the last two; after that, the pool has two."""
    from lm_eval.api.samplers import ContextSampler

    dev, _ = read(num_fewshot=2)
    task = dev.sources[0].task
    task.sampler = ContextSampler([*task.fewshot_docs()], fewshot_indices=[4, 5])
    other = with_documents(task, dev.sources[0].documents[:2], hidden=())
    other.set_fewshot_seed(seed=1)
    for document in other.eval_docs:
        context = other.fewshot_context(document, num_fewshot=1)
        assert context.count("Question:") == 2
        assert " 4?" in context or " 5?" in context


def test_the_random_state_of_the_process_is_left_alone(read):
    import random

    import torch

    random.seed(5), torch.manual_seed(5)
    expected = random.random(), torch.rand(1)
    random.seed(5), torch.manual_seed(5)
    read(num_fewshot=1)
    assert (random.random(), torch.rand(1)) == expected


SAMPLES = {"do_sample": True, "temperature": 0.7, "until": ["\n"]}
BEAMS = {"num_beams": 4, "until": ["\n"]}
WRONG = {
    "an unknown metric": (
        {"metric": "acc_nrm"},
        "metric: expected one of acc, acc_norm, acc_bytes, exact_match, found 'acc_nrm'; "
        "did you mean 'acc_norm'?",
    ),
    "an unknown filter": (
        {"kind": "answers", "filter": "hole"},
        "filter: expected one of whole, first-letter, found 'hole'; did you mean 'whole'?",
    ),
    "no dev documents": (
        {"splits": ("test",)},
        "expected dev to be a number of documents, found none: the task has no training or "
        "validation documents beside the 6 that it evaluates",
    ),
    "nothing left for test": (
        {"splits": ("test",), "dev": 6},
        "expected more than 6 documents, of which some are left for the test, found 6",
    ),
    "several answers to a question": (
        {"kind": "answers", "changes": {"repeats": 3}},
        "expected one answer to each question, found repeats 3",
    ),
    "sampling": (
        {"kind": "answers", "changes": {"generation_kwargs": SAMPLES}},
        "expected greedy decoding, found sampling (do_sample True, temperature 0.7)",
    ),
    "beams": (
        {"kind": "answers", "changes": {"generation_kwargs": BEAMS}},
        "expected greedy decoding with max_gen_toks and until, found num_beams 4",
    ),
    "images": (
        {"changes": {"doc_to_image": "question"}},
        "expected a task of texts, found one with images or sound",
    ),
    "code": (
        {"kind": "lengths", "changes": {"unsafe_code": True}},
        "expected confirm_unsafe_code: true for a task that runs code which the model writes",
    ),
    "a fixed number of worked examples": (
        {"changes": {"num_fewshot": 0}, "num_fewshot": 5},
        "num_fewshot: expected 0, which the task fixes and the harness keeps, found 5",
    ),
    "more worked examples than there are": ({"num_fewshot": 50}, "arger than population"),
    "a description that cannot be built": (
        {"changes": {"output_type": "guess"}},
        "expected one that can be built here, found ValueError: Got invalid output_type 'guess'",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_it_is_refused_in_a_sentence(read, what):
    settings, expected = WRONG[what]
    with pytest.raises(ValueError) as raised:
        read(**settings)
    message = str(raised.value)
    kind = settings.get("kind", "choices")
    assert message.startswith(f"lm_eval task {kind!r}: ")
    assert expected in message
    assert "\n" not in message


def test_unsafe_code_may_be_confirmed(read):
    dev, _ = read("lengths", changes={"unsafe_code": True}, confirm_unsafe_code=True)
    assert dev.metric == "length"


def test_an_unknown_task_is_refused_with_the_nearest(read, tmp_path, monkeypatch):
    """Among the tasks of the folder; those of the harness take seconds to list."""
    from lm_eval.tasks import TaskManager

    read()
    folder = str(tmp_path / "tasks")
    known = TaskManager(include_path=folder, include_defaults=False)
    monkeypatch.setattr(package, "_manager_with_defaults", lambda path: known)
    expected = "lm_eval: expected a task of the harness, found 'choice'; did you mean 'choices'?"
    with pytest.raises(ValueError) as raised:
        read_lm_eval("choice", include_path=folder)
    assert str(raised.value) == expected


def test_a_missing_package_is_named(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(package, "version", missing)
    expected = 'lm_eval tasks need the package: pip install "lm-eval>=0.4.10,<0.5"'
    with pytest.raises(ModuleNotFoundError) as raised:
        read_lm_eval("arc_easy")
    assert str(raised.value) == expected


@pytest.mark.parametrize("found", ["0.4.9.2", "0.5.0", "0.5.0.dev1"])
def test_another_version_is_refused(monkeypatch, found):
    monkeypatch.setattr(package, "version", lambda name: found)
    with pytest.raises(ValueError) as raised:
        read_lm_eval("arc_easy")
    assert str(raised.value) == f"lm_eval: expected lm-eval >=0.4.10,<0.5, found {found}"


@pytest.mark.slow
def test_a_misspelt_task_of_the_harness_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="found 'arc_eazy'; did you mean 'arc_easy'?"):
        read_lm_eval("arc_eazy", dev=2, test=2)


@pytest.mark.slow
def test_the_package_is_imported_only_when_a_task_asks():
    import subprocess

    code = "import sys, evox_evogm.command.merge_run; print('lm_eval' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_scores_below_0_are_refused_by_a_harmonic_mean(read):
    from evox_evogm.problems import LoRAMergeProblem

    dev, _ = read("rolling")
    expected = "expected scores of at least 0 with harmonic, found the metric word_perplexity"
    with pytest.raises(ValueError, match=expected):
        LoRAMergeProblem("nowhere", [], [dev], objective="harmonic")
