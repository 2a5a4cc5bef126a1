"""The GLUE setting of the paper: prompts of FusionBench, and settings files on tiny T5 models."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import yaml
from builders_checkpoints import changed
from builders_t5 import PIECES, build_t5, build_t5_tokenizer, save_t5
from scipy.stats import spearmanr

from evox_evogm.command import cli
from evox_evogm.command.settings_file import read_settings
from evox_evogm.command.tasks import read_tasks

PAPER = Path(__file__).parents[2] / "benchmarks" / "examples" / "paper"
NAMES = ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"]
COLUMNS = ("sentence", "sentence1", "sentence2", "premise", "hypothesis", "question")
COLUMNS += ("question1", "question2")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("glue", PAPER / "glue_json_lines.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made_up(task, count):
    """Rows with the columns of GLUE."""
    rows = []
    for index in range(count):
        label = round(5 * index / count, 3) if task == "stsb" else index % 2
        texts = {column: f"{column} {index}" for column in COLUMNS}
        rows.append({"idx": index, "label": label, **texts})
    return rows


@pytest.fixture
def glue(tmp_path, script):
    """The settings files with made-up sets in place, four dev and four test examples a task."""
    args = script.parse(["--dev", "4", "--test", "4"])
    for task in NAMES:
        script.write_task(task, made_up(task, 12), tmp_path / "glue", args)
    for path in PAPER.glob("glue_flan_t5_*.yaml"):
        shutil.copy(path, tmp_path)
    return tmp_path


def test_prompts_and_labels_are_those_that_the_experts_know(script):
    assert list(script.TEMPLATES) == NAMES
    row = {"idx": 7, "label": 1, **{column: column.upper() for column in COLUMNS}}
    expected = {  # as FusionBench spells them
        "cola": (
            'Indicate if the following sentence is grammatically correct or not: "SENTENCE". '
            "Answere 'acceptable' or 'unacceptable'.",
            "acceptable",
        ),
        "rte": (
            "Does the text: 'SENTENCE1' entail that 'SENTENCE2' is true? Provide 'yes' or 'no'.",
            "no",
        ),
        "stsb": (
            "Consider the sentences 'SENTENCE1' and 'SENTENCE2'. On a scale from 1 (completely "
            "different) to 5 (completely similar), rate the similarity.",
            "1.0",
        ),
    }
    for task, (prompt, answer) in expected.items():
        found = script.make_row(task, row)
        assert found == {"id": f"{task}-7", "prompt": prompt, "answer": answer}
    labels = {task: script.TEMPLATES[task].labels for task in NAMES}
    assert labels["mnli"] == ("entailment", "neutral", "contradiction")
    assert labels["qnli"] == ("yes", "no") and labels["qqp"] == labels["mrpc"] == ("no", "yes")
    assert labels["sst2"] == ("negative", "positive") and labels["stsb"] == ()


def test_dev_and_test_share_no_prompt(script):
    rows = [{"prompt": str(n % 30), "answer": "x"} for n in range(60)]
    chosen = script.choose(rows, dev=10, test=0, seed=0)
    prompts = [{row["prompt"] for row in chosen[split]} for split in ("dev", "test")]
    assert (len(prompts[0]), len(prompts[1]), prompts[0] & prompts[1]) == (10, 20, set())
    assert len(script.choose(rows, dev=10, test=5, seed=0)["test"]) == 5
    assert script.parse([]).dev == 50  # as in the paper


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_settings_ask_all_tasks_with_their_metrics(glue, kind):
    settings, folder = read_settings(glue / f"glue_flan_t5_{kind}.yaml")
    assert (settings.base, settings.algorithm) == ("google/flan-t5-base", "EvoGM")
    assert (settings.pop_size, settings.search) == (20, {"n_rounds": 2, "n_iters": 3})
    assert list(settings.experts) == NAMES
    found = read_tasks(settings.tasks, folder)
    assert [task.name for task in found.dev] == NAMES
    for _, task in found.by_split():
        metric = "spearman" if task.name == "stsb" else "exact_match"
        assert (task.metric, task.max_new_tokens, len(task.examples)) == (metric, 9, 4)


def writes_numbers():
    """A tiny T5 whose answers are digits."""
    model = build_t5()
    digits = [PIECES.index(digit) for digit in "0123456789"]
    model.lm_head.weight[digits] *= 4
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_search_of_the_settings_runs_on_tiny_models(glue, make_adapter, kind):
    base = save_t5(glue / "base", writes_numbers())
    experts = {}
    for seed, name in enumerate(NAMES):
        if kind == "full":
            experts[name] = str(save_t5(glue / "experts" / name, changed(writes_numbers(), seed)))
        else:
            options = {"target_modules": ["q", "v"], "task_type": "SEQ_2_SEQ_LM"}
            experts[name] = str(make_adapter(name, writes_numbers(), seed=seed, **options))
    path = glue / f"glue_flan_t5_{kind}.yaml"
    small = {"pop_size": 4, "budget": 8, "dtype": "float32", "base": str(base)}
    small["search"] = {"n_rounds": 1, "n_iters": 1, "epochs": 2, "hidden_dims": [8]}
    small["experts"] = experts
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **small}))
    assert cli.main(["merge", str(path), "--out", str(glue / "out")]) in (0, 3)
    result = json.loads((glue / "out" / "result.json").read_text())
    assert list(result["tasks"]) == NAMES
    # The base's score of STS-B by plain transformers and scipy.
    model, answers, targets = writes_numbers(), [], []
    tokenizer = build_t5_tokenizer()
    for line in (glue / "glue" / "stsb_test.jsonl").read_text().splitlines():
        row = json.loads(line)
        given = tokenizer(row["prompt"], return_tensors="pt")
        tokens = model.generate(**given, max_length=10, do_sample=False, num_beams=1)[0]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        try:
            answers.append(float(text))
        except ValueError:
            answers.append(0.0)
        targets.append(float(row["answer"]))
    assert len(set(answers)) > 1
    expected = spearmanr(answers, targets).statistic
    assert result["scores"][0]["test"]["stsb"] == pytest.approx(expected, abs=1e-6)
