"""`evogm init` writes settings that `evogm check` and `evogm merge` accept."""

import json
import shlex
import shutil
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from builders import change_settings, history, merge

from evox_evogm.command import check_run, cli, early_checks
from evox_evogm.command.commands.check import merge_command
from evox_evogm.command.look_at_adapters import look_at, names_of
from evox_evogm.command.settings import parse_settings
from evox_evogm.monitoring.budget import Budget
from evox_evogm.problems.adapters.odd_experts import ExpertSpectrum
from evox_evogm.problems.checkpoints.checkpoint_spectra import spectrum_of

CARD = "---\nlicense: mit\ndatasets: [openai/gsm8k]\n---\n# An adapter\n"


@pytest.fixture
def adapters(project, monkeypatch):
    """The experts of the project, of which one has a card, and no settings file."""
    monkeypatch.chdir(project)
    (project / "run.yaml").rename(project / "other.yaml")
    (project / "experts" / "first" / "README.md").write_text(CARD)
    return project


def init(*words):
    return cli.main(["init", "experts", "--base", "base", *words])


def test_an_adapter_says_its_base_ranks_modules_licence_and_data(adapters):
    first, second = look_at(["experts/first", "experts/second"])
    assert (first.name, first.ranks, first.modules) == ("first", (4, 4), 4)  # two of two layers
    assert first.kinds == ("q_proj", "v_proj") and second.kinds == ("o_proj", "up_proj")
    assert (first.licence, first.data) == ("mit", ("openai/gsm8k",))
    assert (second.licence, second.data, second.ranks) == (None, (), (2, 2))
    expected = "rank 4, 4 modules (q_proj, v_proj), licence mit, trained on openai/gsm8k"
    assert first.words == expected


@pytest.mark.lengthy
def test_the_settings_are_read_by_check_and_by_merge(adapters, capsys):
    assert init() == 0
    printed = capsys.readouterr().out
    assert "second: rank 2, 4 modules (o_proj, up_proj), licence not said" in printed
    assert "note: licences: the licence of the base, second is unknown" in printed
    assert "its task is an example: put your own questions into" in printed
    text = (adapters / "run.yaml").read_text()
    assert "# - {lm_eval: gsm8k, dev: 20, test: 100}" in text
    settings = yaml.safe_load(text)
    assert settings["experts"] == {"first": "experts/first", "second": "experts/second"}
    assert settings["base"] == "base" and settings["budget"] == 60
    words = ["search={box_growth: 0.25}", "budget=7"]
    assert cli.main(["check", "run.yaml", "--device", "cpu", "--prompts", *words]) == 0
    printed = capsys.readouterr().out
    for part in (
        "expert: first, rank 4, 4 modules",
        "task: example, choice_likelihood, 8 dev and 20 test examples",
        "probe of the base: ",
        "the average of the experts on dev: score ",
        "What is 2 plus 2?",
        "for 7 evaluations",
        "memory: ",
        " s for imports and reading, as this check took,",
        "for the merge without each expert,",
        "all is well; next: evogm merge run.yaml 'search={box_growth: 0.25}' budget=7 "
        "--device cpu\n",
    ):
        assert part in printed, part
    assert cli.main(["merge", "run.yaml", "--device", "cpu", *words]) == 0
    assert len(history(adapters / "runs" / "run")) == 7


def test_what_check_says_of_the_average_is_what_merging_finds(project, capsys):
    change_settings(project, budget=4)
    assert cli.main(["check", str(project / "run.yaml")]) == 0
    printed = capsys.readouterr().out
    assert sorted(path.name for path in project.iterdir() if path.is_dir()) == ["base", "experts"]
    assert merge(project) == 0
    result = json.loads((project / "out" / "result.json").read_text())
    (average,) = [row for row in result["scores"] if row["name"] == "average"]
    rows = json.loads((project / "out" / "scores_by_example.json").read_text())["rows"]
    (scores,) = [row["dev"] for row in rows if row["name"] == "average"]
    for task, score in average["dev"].items():
        error = statistics.stdev(scores[task]) / len(scores[task]) ** 0.5
        shown = [f"{number:.3f}".replace("0.", ".", 1) for number in (score, error)]
        assert f"    {task} {' ± '.join(shown)}\n" in printed


@pytest.mark.lengthy
def test_an_expert_that_was_not_trained_is_said_once(project, edit_tensors, capsys):
    zero = {"lora_B": 0.0}
    edit_tensors(
        project / "experts" / "second",
        lambda tensors: {
            name: value * zero.get(name.split(".")[-2], 1.0) for name, value in tensors.items()
        },
    )
    assert cli.main(["check", str(project / "run.yaml"), "budget=4"]) == 0
    printed, errors = capsys.readouterr()
    sentence = (
        "expert 'second': changes nothing, as its A or B is 0 in every module, which is how the "
        "training of a LoRA begins"
    )
    assert printed.count(sentence) == 1 and sentence not in errors
    assert "a run can begin, but see the notes on second; next: evogm merge" in printed
    assert "all is well" not in printed


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (134_515_008, "135 million"),
        (7_615_616_512, "7,616 million"),
        (1_540_000, "1.5 million"),
        (9_960_000, "10 million"),
        (21_312, "21 thousand"),
        (4_096, "4.1 thousand"),
        (999_800, "1,000 thousand"),
        (512, "512"),
    ],
)
def test_parameters_in_words(parameters, words):
    assert check_run.in_words(parameters) == words


def test_a_base_that_is_nowhere_is_refused_and_one_that_may_be_on_the_hub_is_noted(
    adapters, capsys, edit_config, hub_cache
):
    assert cli.main(["init", "experts", "--base", "bsae"]) == 2
    expected = "base: expected a transformers folder or hub id, found"
    said = f"evogm: {expected} 'bsae': no such folder; did you mean 'base'?\n"
    assert capsys.readouterr().err == said
    assert cli.main(["init", "experts", "--base", "./bsae"]) == 2
    assert "found no such folder at bsae; did you mean 'base'?" in capsys.readouterr().err
    assert not (adapters / "run.yaml").exists()
    for name in ("first", "second"):
        edit_config(adapters / "experts" / name, base_model_name_or_path="/elsewhere/model")
    assert cli.main(["init", "experts/first", "experts/second"]) == 0
    said = f"note: {expected} '/elsewhere/model': no such folder; --base names another one\n"
    assert said in capsys.readouterr().out


def test_an_existing_file_is_kept_unless_it_may_be_replaced(adapters, capsys):
    (adapters / "run.yaml").write_text("mine")
    assert init() == 2
    assert "expected a new file, found run.yaml" in capsys.readouterr().err
    assert (adapters / "run.yaml").read_text() == "mine"
    assert init("--replace") == 0
    assert "experts:" in (adapters / "run.yaml").read_text()


def test_tasks_may_be_given(adapters, capsys):
    files = "dev.jsonl,test.jsonl"
    words = ["--task", files, "--task", "quiz.json", "--task", "reasoning_gym:gcd"]
    assert init(*words, "-o", "sub/mine.yaml") == 0
    tasks = yaml.safe_load((adapters / "sub" / "mine.yaml").read_text())["tasks"]
    assert tasks[0]["json_lines"] == "../dev.jsonl"  # from the settings file
    assert "metric" not in tasks[0]  # its lines have no choices
    assert tasks[1] == {"swarm_eval": "../quiz.json", "metric": "choice_likelihood"}
    assert tasks[2]["reasoning_gym"] == "gcd"
    text = (adapters / "sub" / "mine.yaml").read_text()
    assert "  first: ../experts/first\n" in text and "\nbase: ../base\n" in text
    assert not (adapters / "sub" / "example_dev.jsonl").exists()
    assert init("--task", "nowhere.jsonl", "--replace") == 2
    assert "found no file nowhere.jsonl; expected DEV.jsonl,TEST" in capsys.readouterr().err
    for word, near in (("deev.jsonl", "dev.jsonl"), ("reasoning-gym:gcd", "reasoning_gym:gcd")):
        assert init("--task", word, "--replace") == 2
        said = f"evogm: task: found no file {word}; did you mean {near!r}?\n"
        assert capsys.readouterr().err == said
    assert init("--task", "reasoning_gym:sylogism", "--replace") == 2
    assert "found 'sylogism'; did you mean 'syllogism'?" in capsys.readouterr().err


def test_a_task_of_the_harness_has_to_be_one(adapters, capsys, monkeypatch):
    names = ["arc_easy", "gsm8k"]
    monkeypatch.setattr(early_checks, "tasks_of_harness", lambda: names)
    assert init("--task", "lm_eval:arc_esy") == 2
    said = "evogm: task: expected a task of the harness, found 'arc_esy'; did you mean 'arc_easy'?"
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"{said}\n")
    assert init("--task", "lm_eval:gsm8k") == 0
    names.clear()  # as where lm-eval is not installed
    assert init("--task", "lm_eval:arc_esy", "--replace") == 0


@pytest.mark.slow  # the harness lists its tasks in five seconds
def test_the_harness_names_its_tasks():
    names = early_checks.tasks_of_harness()
    assert {"arc_easy", "gsm8k", "mmlu"} <= set(names)


def test_a_data_set_with_the_name_of_an_adapter_is_its_task(adapters):
    shutil.move("experts/first", "experts/gcd")
    shutil.move("experts/second", "experts/syllogism")
    assert init() == 0
    settings = yaml.safe_load((adapters / "run.yaml").read_text())
    assert [task["reasoning_gym"] for task in settings["tasks"]] == ["gcd", "syllogism"]
    assert settings["regmean"] is True


@pytest.mark.parametrize("regmean", [True, False])
def test_a_task_is_named_after_its_file_without_the_split(adapters, regmean):
    names = ("first", "second" if regmean else "third")
    for name in names:
        for split in ("dev", "test"):
            shutil.copy(f"{split}.jsonl", f"{name}_{split}.jsonl")
    assert init("--task", f"{names[0]}_dev.jsonl", "--task", f"{names[1]}_dev.jsonl") == 0
    settings = yaml.safe_load((adapters / "run.yaml").read_text())
    assert [task["name"] for task in settings["tasks"]] == list(names)
    assert settings["tasks"][0]["test_file"] == "first_test.jsonl"
    assert settings.get("regmean", False) is regmean  # each expert has a task of its name, or not


def test_adapters_of_different_bases_need_a_base(adapters, edit_config, capsys):
    for name, base in (("first", "meta-llama/Llama-3.1-8B"), ("second", "Qwen/Qwen3-4B")):
        edit_config(adapters / "experts" / name, base_model_name_or_path=base)
    assert cli.main(["init", "experts"]) == 2
    error = capsys.readouterr().err
    assert "expected adapters of one base model, found meta-llama/Llama-3.1-8B (first)" in error
    assert "give --base" in error and not (adapters / "run.yaml").exists()


def test_adapters_of_one_name_get_more_of_their_path(tmp_path):
    folders = [tmp_path / "a" / "final", tmp_path / "b" / "final", tmp_path / "c"]
    assert names_of(folders) == ["a-final", "b-final", "c"]


def test_a_base_is_named_as_the_settings_file_sees_it(adapters):
    assert init("-o", "sub/mine.yaml") == 0
    settings = yaml.safe_load((adapters / "sub" / "mine.yaml").read_text())
    assert settings["base"] == "../base"
    assert init("-o", "mine.yaml") == 0
    assert yaml.safe_load((adapters / "mine.yaml").read_text())["base"] == "base"


@pytest.mark.parametrize(
    ("changes", "extra"),
    [
        ({}, {"the merge without each expert": 2}),
        ({"contributions": False}, {}),
        ({"contributions": False, "trial": {"epochs": 3}}, {"the trial": 41.5}),
        # A training of 3 epochs on all dev examples more, of which a gradient counts 3.
        ({"contributions": False, "trial": {"epochs": 3, "row": True}}, {"the trial": 50.5}),
    ],
)
def test_the_prediction_has_all_that_a_run_evaluates(monkeypatch, changes, extra):
    monkeypatch.setattr(check_run, "cost_of_trial", lambda problem, settings: 41.5)
    table = {"base": "b", "experts": ["a"], "tasks": [{"json_lines": "d", "test_file": "t"}]}
    settings = parse_settings({**table, **changes}, "settings")
    merge_run = SimpleNamespace(problem=SimpleNamespace(n_experts=2), settings=settings)
    assert check_run.extra_evaluations(merge_run) == extra


def test_the_prediction_has_imports_and_reading():
    words = {"base": "b", "experts": ["a"], "tasks": [{"json_lines": "d", "test_file": "t"}]}
    task = SimpleNamespace(examples=[SimpleNamespace(prompt="x")])
    merge_run = SimpleNamespace(
        problem=SimpleNamespace(n_experts=2, n_given=2, regressed=False),
        settings=parse_settings({**words, "contributions": False, "stop": None}, ""),
        algorithm=SimpleNamespace(pop_size=3),
        limit=SimpleNamespace(budget=Budget(30), words=lambda: []),
        tasks=SimpleNamespace(dev=[task], test=[task]),
    )
    lines = check_run.predict(merge_run, check_run.Tried(None, 1.0, 0.0), beginning=40.0)
    assert lines[1] == "    about 40 s for imports and reading, as this check took,"
    # 30 of the search, of base, two experts, average and merge 5 on test and 4 on dev.
    assert lines[2] == "    about 9 s for the final table, about 79 s together"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (torch.tensor([[3.0, 0.0], [0.0, 4.0]]), ", norm 5, 64 % in one direction"),  # 16 / 25
        (torch.tensor([3.0, 4.0]), ", norm 5"),  # a vector has no directions
    ],
)
def test_the_share_of_one_direction_is_left_out_where_there_is_none(change, words):
    found = ExpertSpectrum("one", {"norm": spectrum_of(change)})
    assert check_run.describe_size(found) == words


def test_the_next_command_keeps_what_was_given():
    options = {"budget": "20min", "seed": None, "device": "cpu", "dtype": None}
    command = merge_command(Path("my run.yaml"), ["search={epochs: 2}", "regmean="], options)
    expected = ["evogm", "merge", "my run.yaml", "search={epochs: 2}", "regmean="]
    assert shlex.split(command) == [*expected, "--budget", "20min", "--device", "cpu"]
