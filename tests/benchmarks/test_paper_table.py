"""The paper's tables, with our figures beside the paper's."""

import json
from pathlib import Path

import pytest
import yaml

from benchmarks.paper_table.__main__ import FIGURES, main
from evox_evogm.command.settings_file import read_settings

PAPER = Path(__file__).parents[2] / "benchmarks" / "examples" / "paper"
EIGHT = FIGURES["1"]["columns"]


@pytest.fixture
def write_run(tmp_path):
    """A function that writes what a table reads of a run."""

    def write(name, tasks, *, algorithm="EvoGM", seed=0, gain=0.1, sources=(), **settings):
        folder = tmp_path / name
        folder.mkdir()
        kinds = [("base", "base", 0.2), ("one", "expert", 0.3), ("two", "expert", 0.25)]
        kinds += [("average", "average", 0.1), (algorithm, "merge", 0.3 + gain)]
        scores = []
        for row, kind, score in kinds:
            dev = 0.9 if row == "two" else score  # the second expert is the best on dev
            both = {"dev": dict.fromkeys(tasks, dev), "test": dict.fromkeys(tasks, score)}
            scores.append({"name": row, "kind": kind, **both})
        result = {"scores": scores, "algorithm": algorithm, "seed": seed}
        result |= {"evaluations": 160, "seconds": 90.0, "sources": dict(sources)}
        (folder / "result.json").write_text(json.dumps(result))
        settings = {"base": "Qwen/Qwen2.5-1.5B", "experts": "owner/name", **settings}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        return str(folder)

    return write


def printed(capsys, *words):
    main(list(words))
    return capsys.readouterr().out.splitlines()


def test_runs_of_single_tasks_stand_beside_table_1(write_run, capsys):
    lines = printed(capsys, write_run("mmlu", ["mmlu"]), write_run("gsm8k", ["gsm8k"], gain=0.2))
    assert lines[0].startswith("Table 1: Qwen2.5-1.5B")
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in lines}
    assert rows["base"][1] == ".564 / .200" and rows["base"][2] == ".207 / -"
    assert rows["single best"][1] == ".586 / .250" and rows["TIES"][5] == ".302 / -"
    assert rows["EvoGM"][1] == ".625 / .400" and rows["EvoGM"][5] == ".434 / .500"
    assert rows["EvoGM"][9] == ".419 / .450 |"
    assert lines[-1].endswith("gsm8k: EvoGM, seed 0, 160 evaluations in 1.5 min")


def test_seeds_are_averaged_and_shown_with_their_deviation(write_run, capsys):
    folders = []
    for seed, gain in enumerate((0.1, 0.2)):
        for task in EIGHT:
            folders.append(write_run(f"{task}_{seed}", [task], seed=seed, gain=gain))
    text = "\n".join(printed(capsys, *folders))
    assert "| EvoGM | .625 / .450 |" in text
    expected = "0.4500 ± 0.0707 over 2 seeds; paper 0.4214 ± 0.0073 over 4"
    assert f"EvoGM, mean of eight tasks: {expected}" in text


def test_each_table_is_found_by_tasks_and_base(write_run, capsys):
    cases = {"2": FIGURES["2"]["columns"], "3": EIGHT, "8": FIGURES["8"]["columns"]}
    folders = [write_run(number, tasks) for number, tasks in cases.items()]
    folders.append(write_run("6", ["mmlu"], base="Qwen/Qwen3-8B", algorithm="SurrogateEvoGM"))
    lines = printed(capsys, *folders)
    found = [line.split(":")[0] for line in lines if line.startswith("Table ")]
    assert found == ["Table 2", "Table 3", "Table 6", "Table 8"]
    means = [line.split(" | ")[-1] for line in lines if line.startswith("| EvoGM")]
    assert means == [".824 / .400 |", ".380 / .400 |", ".603 / - |", ".636 / .400 |"]
    assert any(line.startswith("| SurrogateEvoGM") and "- / .400" in line for line in lines)


OTHERS = {
    "a base": {"base": "smollm2-135m-instruct"},
    "experts by hub id": {"experts": "owner/other"},
    "experts in a table": {"experts": {"one": "owner/one", "two": "owner/two"}},
    "experts in a list": {"experts": ["adapters/one", "adapters/two"]},
    "another commit": {"sources": {"expert one": "owner/name@abc/one"}},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_runs_of_other_bases_or_experts_have_a_table_of_their_own(write_run, capsys, other):
    folders = [write_run("first", ["mmlu"]), write_run("second", ["mmlu"], gain=0.2, seed=1)]
    third = write_run("third", ["mmlu"], gain=0.4, **other)
    lines = printed(capsys, *folders, third)
    cells = [line.split(" | ")[1] for line in lines if line.startswith("| EvoGM")]
    assert cells == [".625 / .450", ".625 / .700"]
    assert lines.count(lines[0]) == 2 and lines[0].startswith("Table 1")
    assert f"runs {', '.join(folders)}." in "\n".join(lines)


def test_the_same_local_experts_are_found_from_each_run_folder(write_run, tmp_path, capsys):
    (tmp_path / "adapters").mkdir()
    given = [str(tmp_path / "adapters"), "../adapters"]
    folders = [write_run(f"{n}", ["mmlu"], experts=path) for n, path in enumerate(given)]
    assert sum(line.startswith("Table") for line in printed(capsys, *folders)) == 1


def test_runs_of_no_table_and_unfinished_ones_are_left_out_with_a_line(write_run, tmp_path, capsys):
    mine = write_run("mine", ["mine"])
    (tmp_path / "begun").mkdir()
    begun = str(tmp_path / "begun")
    lines = printed(capsys, mine, begun, write_run("mmlu", ["mmlu"]))
    assert lines[0].startswith("Left out: runs: expected tasks of a table of the paper, found mine")
    assert lines[1].startswith("Left out: ") and lines[1].endswith("begun, found no result.json")
    assert lines[2].startswith("Table 1") and "mine" not in "".join(lines[2:])
    with pytest.raises(SystemExit, match="finished run of a table of the paper, found none$"):
        main([mine, begun])


def names_in(*paths):
    """The names of the tasks of settings files, in order."""
    names = []
    for path in paths:
        settings, _ = read_settings(PAPER / path)
        names += [task.name or Path(task.source).stem for task in settings.tasks]
    return names


def test_the_figures_are_of_the_tasks_of_the_settings():
    assert names_in("all_eight.yaml") == FIGURES["3"]["columns"]
    assert names_in("glue_flan_t5_lora.yaml") == FIGURES["2"]["columns"]
    assert names_in("glue_flan_t5_full.yaml") == FIGURES["2"]["columns"]
    assert names_in("vit_b16_20.yaml") == FIGURES["8"]["columns"]
    for table, folder in {"1": "single", "6": "qwen3_8b"}.items():
        files = sorted((PAPER / folder).glob("*.yaml"))
        assert sorted(names_in(*files)) == sorted(FIGURES[table]["columns"])
    for number in ("1", "2", "3", "6", "8"):
        for row in FIGURES[number].get("rows", {}).values():
            assert len(row) == len(FIGURES[number]["columns"])
