"""The settings files of the paper's experiments, on tiny models and made-up sets of its layout."""

import json
import shutil
import statistics
from pathlib import Path

import pytest
import yaml
from builders import build_model, build_tokenizer
from builders_swarm_eval import write_swarm_eval
from fake_hub import COMMIT, add_to_cache

from evox_evogm.command import cli
from evox_evogm.command.settings_file import read_settings
from evox_evogm.command.tasks import read_tasks

PAPER = Path(__file__).parents[2] / "benchmarks" / "examples" / "paper"
PUBLISHED = "TaoJiangCN/qwen2.5-1.5b-tulu-v2-lora-experts"
EIGHT = {
    "mmlu": ("multiple_choice_generation", "equal", 10),
    "mmlu_pro": ("multiple_choice_generation", "equal", 10),
    "hellaswag": ("multiple_choice_generation", "equal", 10),
    "knowledge_crosswords": ("multiple_choice_generation", "equal", 10),
    "gsm8k": ("exact_match", "last_10_words", 200),
    "nlgraph": ("exact_match", "contains", 10),
    "truthfulqa": ("multiple_choice_generation", "equal", 10),
    "mmlu_abstain": ("abstain_qa", "equal", 10),
}
DOMAINS = {
    "legal": ["hearsay", "citation_prediction_classification"],
    "medical": ["medqa", "medmcqa"],
    "science": ["scifact", "stem"],
    "culture": ["normad_country", "normad_value"],
}
SMALL = {  # a search of two steps
    "pop_size": 4,
    "budget": 8,
    "search": {"n_rounds": 1, "n_iters": 1, "epochs": 2, "hidden_dims": [8]},
    "mode": "unmerged",
}


@pytest.fixture
def paper(tmp_path, make_adapter, hub_cache):
    """The folder of settings, the sets, and a tiny base and two adapters in the hub's cache."""
    folder = tmp_path / "paper"
    shutil.copytree(PAPER, folder)
    models = tmp_path / "repository"
    build_model("qwen2").save_pretrained(models / "base")
    build_tokenizer().save_pretrained(models / "base")
    for seed, name in enumerate(("tulu_cot", "tulu_lima")):
        made = make_adapter(name, build_model("qwen2"), seed=seed)
        shutil.copytree(made, models / "experts" / name)
    add_to_cache(hub_cache, PUBLISHED, models)
    write_swarm_eval(folder / "swarm_eval", dev=2, test=2)
    return folder


def search(paper, name):
    """Run a settings file with a small search; its status and its run folder."""
    path = paper / f"{name}.yaml"
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**settings, **SMALL}))
    out = paper / "runs" / Path(name).name
    return cli.main(["merge", str(path), "--out", str(out)]), out


def test_there_is_a_file_for_each_task_and_each_domain_and_one_for_all_tasks():
    assert sorted(path.stem for path in (PAPER / "single").glob("*.yaml")) == sorted(EIGHT)
    assert sorted(path.stem for path in (PAPER / "domains").glob("*.yaml")) == sorted(DOMAINS)
    assert sorted(path.stem for path in (PAPER / "qwen3_8b").glob("*.yaml")) == sorted(EIGHT)
    others = [path for path in PAPER.glob("*.yaml") if path.stem.startswith(("glue", "vit"))]
    assert [path.stem for path in PAPER.glob("*.yaml") if path not in others] == ["all_eight"]
    common = []
    for path in set(PAPER.rglob("*.yaml")) - set(others):
        settings = yaml.safe_load(path.read_text())
        if path.parent.name == "qwen3_8b":
            assert settings.pop("base") == "Qwen/Qwen3-8B"
            assert settings.pop("experts") == "../qwen3-8b-experts"
        else:
            assert settings.pop("experts") == PUBLISHED and "base" not in settings
        objective = "harmonic" if path.parent.name == "domains" else None
        assert settings.pop("objective", None) == objective
        settings.pop("tasks")
        common.append(settings)
    assert all(settings == common[0] for settings in common)
    # The search of the published code: 2 rounds of initial points and 3 times 20 offspring.
    assert common[0]["algorithm"] == "EvoGM"
    assert common[0]["search"] == {"n_rounds": 2, "n_iters": 3}
    assert (common[0]["pop_size"], common[0]["budget"]) == (20, 2 * (1 + 3) * 20)


def test_every_file_asks_its_tasks_as_published(paper):
    names = {f"single/{name}": [name] for name in EIGHT}
    names |= {f"qwen3_8b/{name}": [name] for name in EIGHT}
    names["all_eight"] = list(EIGHT)
    for file, tasks in names.items():
        settings, folder = read_settings(paper / f"{file}.yaml")
        found = read_tasks(settings.tasks, folder)
        assert [task.name for task in found.dev] == tasks
        for _, task in found.by_split():
            assert (task.metric, task.match, task.max_new_tokens) == EIGHT[task.name]
            assert (task.protocol, task.chat, len(task.examples)) == ("published", False, 2)
    for domain, tasks in DOMAINS.items():
        settings, folder = read_settings(paper / "domains" / f"{domain}.yaml")
        assert read_tasks(settings.tasks, folder).domains == {domain: tasks}


@pytest.mark.slow
def test_the_search_for_all_eight_tasks_says_its_protocol_and_is_not_made_again(paper):
    status, out = search(paper, "all_eight")
    assert status in (0, 3)  # tiny random models may all be wrong
    result = json.loads((out / "result.json").read_text())
    assert list(result["tasks"]) == list(EIGHT)
    for name, task in result["tasks"].items():
        assert (task["protocol"], task["metric"]) == ("published", EIGHT[name][0])
    assert len(result["scores"]) == 5  # base, two experts, the average and the merge
    for row in result["scores"]:
        assert -1 <= row["dev"]["mmlu_abstain"] <= row["dev"]["mmlu"] <= 1
    report = (out / "report.md").read_text()
    assert "| mmlu_abstain | abstain_qa | published | 2 | 2 |" in report
    assert (
        "Protocol `published`: prompts, lengths, parser and scores of the paper's own code"
        in report
    )
    for page in (out / "report.html", out / "adapter" / "README.md"):
        assert page.read_text().count("(protocol published)") == 8
    history = (out / "history.jsonl").read_bytes()
    again = cli.main(["merge", str(paper / "all_eight.yaml"), "--out", str(out)])
    assert again == status
    assert (out / "history.jsonl").read_bytes() == history


def test_a_domain_is_searched_and_reported_by_its_harmonic_mean(paper):
    status, out = search(paper, "domains/medical")
    assert status in (0, 3)
    result = json.loads((out / "result.json").read_text())
    assert result["sources"]["base"] == f"{PUBLISHED}@{COMMIT}/base"
    assert result["sources"]["expert tulu_cot"] == f"{PUBLISHED}@{COMMIT}/experts/tulu_cot"
    medical = result["domains"]["medical"]
    assert medical["tasks"] == ["medqa", "medmcqa"]
    lines = (out / "report.md").read_text().splitlines()
    table = lines[lines.index("| model | medical |") + 2 :]
    for row, mean, line in zip(result["scores"], medical["scores"], table, strict=False):
        assert (row["name"], row["kind"]) == (mean["name"], mean["kind"])
        shown = []
        for split in ("dev", "test"):
            expected = statistics.harmonic_mean(row[split].values())
            assert mean[split] == pytest.approx(expected)
            shown.append(f"{expected:.3f}".removeprefix("0"))
        assert line.endswith(f"| {' / '.join(shown)} |")
    assert "- medical: medqa, medmcqa" in lines


@pytest.mark.slow
@pytest.mark.parametrize("name", EIGHT)
def test_the_search_for_one_task_finishes(paper, name):
    status, out = search(paper, f"single/{name}")
    assert status in (0, 3)
    assert list(json.loads((out / "result.json").read_text())["tasks"]) == [name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gsm8k", "mmlu_abstain"])
def test_the_search_with_qwen3_finishes(paper, make_adapter, hub_cache, tmp_path, name):
    small = build_model("qwen3")
    small.save_pretrained(tmp_path / "qwen3")
    build_tokenizer().save_pretrained(tmp_path / "qwen3")
    add_to_cache(hub_cache, "Qwen/Qwen3-8B", tmp_path / "qwen3")
    for seed, expert in enumerate(("one", "two")):
        made = make_adapter(f"qwen3_{expert}", build_model("qwen3"), seed=seed)
        shutil.copytree(made, paper / "qwen3-8b-experts" / expert)
    status, out = search(paper, f"qwen3_8b/{name}")
    assert status in (0, 3)
    result = json.loads((out / "result.json").read_text())
    assert list(result["tasks"]) == [name] and len(result["scores"]) == 5
    assert result["sources"]["base"] == f"Qwen/Qwen3-8B@{COMMIT}"
