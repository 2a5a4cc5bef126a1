"""The guide to a first merge runs as it stands, on a tiny base here and on SmolLM2 if asked to."""

import json
import re
from pathlib import Path

import pytest
import torch
from builders import build_model
from guides import HUB_BASE, ROOT, block, blocks, code_files, run_python, run_shell

GUIDE = ROOT / "evox_evogm" / "command" / "FIRST_MERGE.md"
SKILLS = {"larger", "digit", "backwards"}
# A search on a random base needs no more to show that every command runs.
QUICKLY = {"merge": ["budget=4", "contributions=false"]}


def write_scripts():
    """The scripts of the guide in the folder that is the current one, with less to compute."""
    for name, code in code_files(GUIDE).items():
        assert HUB_BASE in code
        code = code.replace(HUB_BASE, "base")
        Path(name).write_text(code.replace("range(60)", "range(2)").replace("[12:72]", "[12:20]"))


def run_all(more=None):
    """Run all lines of the guide; the exit statuses."""
    statuses = []
    for code in blocks(GUIDE, "bash"):
        statuses += run_shell(code, more)
    return statuses


@pytest.fixture
def trained(tmp_path, tokenizer, monkeypatch):
    """A folder with a tiny base and the scripts of the guide."""
    monkeypatch.chdir(tmp_path)
    build_model().save_pretrained("base")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained("base")
    write_scripts()
    return tmp_path


def test_the_training_is_ten_lines_of_plain_peft():
    code = block(GUIDE, "python", "LoraConfig")
    assert "evox_evogm" not in code
    training = code[code.index("    optimizer = ") :].splitlines()
    assert len(training) == 10


@pytest.mark.language_model
@pytest.mark.lengthy
def test_from_training_to_an_adapter_that_peft_loads(trained, capsys):
    assert run_all(QUICKLY)[1:3] == [0, 0]  # init and check; a merge of noise may say that it is
    shown = capsys.readouterr().out
    assert {path.name for path in Path("my-adapters").iterdir()} == SKILLS
    assert "Question: What is the last digit of" in shown and "all is well" in shown
    settings = Path("run.yaml").read_text()
    assert re.search(r"^regmean: true$", settings, re.MULTILINE)
    result = json.loads(Path("runs/run/result.json").read_text())
    assert set(result["coefficients"]) == set(result["tasks"]) == SKILLS
    assert all((task["dev"], task["test"]) == (12, 8) for task in result["tasks"].values())
    model = run_python(Path("use.py").read_text(), "use.py")["model"]
    assert capsys.readouterr().out.startswith("Question: Which number is larger")
    merged = model.merge_and_unload().state_dict()
    base = build_model().state_dict()
    changed = {name for name, weight in base.items() if not torch.equal(weight, merged[name])}
    assert changed == {name for name in base if "proj" in name}  # all linear layers


@pytest.mark.slow
def test_on_smollm2_the_merge_has_all_three_skills(tmp_path, monkeypatch):
    from evox_evogm.problems.inference.base_model import SMOLLM2, load_base

    monkeypatch.chdir(tmp_path)
    for part in load_base(SMOLLM2, dtype=torch.bfloat16, device=torch.device("cpu")):
        part.save_pretrained("base")
    for name, code in code_files(GUIDE).items():
        Path(name).write_text(code.replace(HUB_BASE, "base"))
    assert run_all() == [0] * 4
    rows = {}
    for row in json.loads(Path("runs/run/result.json").read_text())["scores"]:
        rows[row["kind"]] = {**rows.get(row["kind"], {}), row["name"]: row["test"]}
    (merge,), (average,) = rows["merge"].values(), rows["average"].values()
    for skill in SKILLS:
        assert merge[skill] > 0.6, skill  # an expert alone has nothing of another's skill
    assert sum(merge.values()) > sum(average.values()) + 0.3


def test_the_line_that_is_shown_is_one_that_the_script_writes(monkeypatch):
    import random

    code = block(GUIDE, "python", "LoraConfig")
    (line,) = blocks(GUIDE, "json")
    row = json.loads(line)
    first, second = map(int, re.findall(r"\d+", row["question"]))
    numbers = code[: code.index("random.seed(0)")]  # the part that asks, without a model
    ask = run_python(numbers, "train.py")["ask"]
    monkeypatch.setattr(random, "sample", lambda among, count: [first, second])
    assert ask("larger") == (row["question"], row["answer"])
