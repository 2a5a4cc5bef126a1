"""The paper's tables, with our figures beside the paper's."""

import json

import pytest
import yaml

from benchmarks.paper_table.__main__ import FIGURES, main

EIGHT = FIGURES["1"]["columns"]


@pytest.fixture
def write_run(tmp_path):
    """A function that writes what a table reads of a run."""

    def write(name, tasks, *, base="Qwen/Qwen2.5-1.5B", algorithm="EvoGM", seed=0, gain=0.1):
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
        result |= {"evaluations": 160, "seconds": 90.0, "sources": {}}
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "config.yaml").write_text(yaml.safe_dump({"base": base}))
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


def test_what_belongs_to_no_table_and_what_is_not_finished_are_refused(write_run, tmp_path):
    with pytest.raises(ValueError, match="^runs: expected tasks of a table .*, found mine in"):
        main([write_run("mine", ["mine"])])
    with pytest.raises(ValueError, match="found no result.json$"):
        main([str(tmp_path)])


def test_the_figures_are_of_the_tasks_of_the_settings():
    for table in ("1", "3", "6"):
        assert FIGURES[table]["columns"] == EIGHT
    assert all(len(row) == len(EIGHT) for row in FIGURES["1"]["rows"].values())
