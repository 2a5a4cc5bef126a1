"""Train or merge: a trial before the search, on a tiny model."""

import json
import math
import re

import pytest
import torch
from builders import change_settings, merge, mixed_adapters

from evox_evogm.command import messages
from evox_evogm.command.merge_run import MergeRun
from evox_evogm.command.settings import parse_settings
from evox_evogm.command.trial import checkpoints
from evox_evogm.command.trial_merges import search_along_gradients
from evox_evogm.command.trial_remarks import note_of_many_examples, remarks_on_trial
from evox_evogm.command.trial_settings import TrialSettings, parse_trial
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.problems.tasks.task import Example, Task


@pytest.fixture
def learnable(project):
    """A project with one task whose answers are all alike, which training learns at once."""
    for split, count in (("dev", 20), ("test", 6)):
        rows = [{"question": f"{split} {i}", "answer": "u"} for i in range(count)]
        (project / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {"json_lines": "dev.jsonl", "test_file": "test.jsonl", "name": "same"}
    trial = {"epochs": 6, "rates": [0.0001, "5e-2"], "row": True}
    change_settings(
        project,
        tasks=[{**task, "metric": "exact_match", "max_new_tokens": 2}],
        trial=trial,
        budget=4,
        contributions=False,
    )
    return project


@pytest.mark.lengthy
def test_a_trial_says_that_training_is_ahead_and_the_table_has_a_trained_row(learnable, capsys):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert merge(learnable) in (0, 3)
    printed = capsys.readouterr().out
    out = learnable / "out"
    trial = json.loads((out / "trial.json").read_text())
    assert trial["examples"] == {"learnt from": 16, "held back": 4}
    assert [(tried["lr"], tried["epoch"]) for tried in trial["tried"]] == [
        (rate, epoch) for rate in (0.0001, 0.05) for epoch in (2, 4, 6)
    ]
    assert trial["chosen"]["lr"] == 0.05 and trial["chosen"]["score"] == 1
    # Two rates and a search of 6 epochs on 16 of 20, the two experts there, and ten scores on 4.
    assert trial["evaluations"] == pytest.approx(3 * 6 * 3 * 0.8 + 2 * 0.8 + 10 * 0.2)
    assert "trial: training and merging, as much as 47 evaluations more" in printed
    shown = re.findall(r"LoRA, rate ([\d.]+), epoch (\d) of 6: (\d\.\d{3})", printed)
    tried = [(f"{one['lr']:g}", str(one["epoch"]), f"{one['score']:.3f}") for one in trial["tried"]]
    assert shown == tried
    assert f"merges: {max(row['score'] for row in trial['scores'][:-1]):.3f} (" in printed
    assert "note: trial on 4 dev examples: 1.000 for a LoRA trained on 16 others" in printed
    result = json.loads((out / "result.json").read_text())
    assert [row["kind"] for row in result["scores"][-3:]] == ["average", "trained", "merge"]
    row = result["scores"][-2]
    assert row["name"] == "LoRA on dev" and row["dev"] == {"same": 1}
    assert "| LoRA on dev | 1.000 ± .048 / " in (out / "report.md").read_text()
    assert any(note.startswith("trial on 4 dev examples") for note in result["notes"])
    base = AutoModelForCausalLM.from_pretrained(learnable / "base", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(learnable / "base")
    loaded = PeftModel.from_pretrained(base, out / "lora_on_dev")
    right = 0
    for i in range(6):
        tokens = tokenizer(f"Question: test {i}\nAnswer:", return_tensors="pt")
        written = loaded.generate(**tokens, do_sample=False, max_new_tokens=2, pad_token_id=0)
        text = tokenizer.decode(
            written[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True
        )
        right += text.strip() == "u"
    assert row["test"]["same"] == pytest.approx(right / 6)


@pytest.mark.lengthy
def test_a_trial_is_made_once_and_changes_no_search(learnable, monkeypatch):
    from builders import history, interrupt_searches

    change_settings(learnable, budget=8, trial=False)
    assert merge(learnable, out="without") in (0, 3)
    change_settings(learnable, trial={"epochs": 1, "rates": [0.01], "start": "merge"})
    with monkeypatch.context() as patch:
        interrupt_searches(patch, 1)
        assert merge(learnable) == 130
    monkeypatch.setattr("evox_evogm.command.trial.run_trial", None)
    assert merge(learnable) in (0, 3)
    result = json.loads((learnable / "out" / "result.json").read_text())
    assert result["trial"]["start"] == "merge" and len(result["trial"]["tried"]) == 1
    assert history(learnable / "out") == history(learnable / "without")
    assert "trained" not in [row["kind"] for row in result["scores"]]


@pytest.mark.lengthy
def test_a_trial_beside_regressed_experts_scores_those_that_were_read(learnable):
    trial = {"epochs": 1, "rates": [0.01], "start": "merge"}
    change_settings(learnable, regmean="prompts", keep_experts=True, trial=trial)
    assert merge(learnable) in (0, 3)
    trial = json.loads((learnable / "out" / "trial.json").read_text())
    names = [row["name"] for row in trial["scores"]]
    assert names[0].startswith("best expert (") and "regressed" not in names[0]
    assert names[1:] == ["average", "RegMean", "merge by gradients", "trained LoRA"]


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_trial_that_fails_is_noted_and_the_run_goes_on(learnable, monkeypatch, error):
    def failing(*_):
        raise error("no memory")

    monkeypatch.setattr("evox_evogm.command.trial.train", failing)
    assert merge(learnable) in (0, 3)
    result = json.loads((learnable / "out" / "result.json").read_text())
    failure = f"{error.__name__}: no memory"
    assert result["trial"] == {"failure": failure}
    assert f"trial: it could not be made: {failure}" in result["notes"]
    assert result["scores"][-2]["failure"] == failure


def test_a_trial_on_too_few_examples_is_refused_before_the_base_loads(project, capsys, monkeypatch):
    monkeypatch.setattr(MergeRun, "_load_problem", None)
    change_settings(project, trial=True)
    assert merge(project) == 2
    expected = "trial: expected at least 10 dev examples, of which a fifth is held back, found 8"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("yes", "trial: expected true, false or a table, found 'yes'"),
        ({"epoch": 3}, "trial: found the unknown setting 'epoch'; did you mean 'epochs'?"),
        ({"epochs": 0}, "trial: epochs: expected at least 1, found 0"),
        ({"rates": [-1.0]}, r"trial: rates: expected a list of numbers above 0, found \[-1.0\]"),
        ({"rates": ["x"]}, "trial: rates: expected a list of numbers above 0, found 'x'"),
        ({"rates": []}, r"trial: rates: expected a list of numbers above 0, found \[\]"),
        ({"start": "base"}, "trial: start: expected one of fresh, merge, found 'base'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_in_a_sentence(value, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_trial(value)
    table = {"base": "b", "experts": "e", "tasks": [{"swarm_eval": "x.json"}], "trial": value}
    with pytest.raises(ValueError, match=sentence):
        parse_settings(table, "run.yaml")


def test_a_trial_is_off_and_true_stands_for_its_defaults():
    table = {"base": "b", "experts": "e", "tasks": [{"swarm_eval": "x.json"}]}
    assert parse_settings(table, "x").trial_settings is None
    settings = parse_settings({**table, "trial": True}, "x")
    assert settings.trial_settings == TrialSettings()
    assert parse_settings(settings.as_table(), "x") == settings
    assert parse_trial({"rates": ["1e-3", 0.5]}).rates == [0.001, 0.5]


@pytest.mark.parametrize(("epochs", "scored"), [(1, [1]), (2, [1, 2]), (6, [2, 4, 6])])
def test_adapters_are_scored_after_each_third_of_the_epochs(epochs, scored):
    assert checkpoints(epochs) == scored


def trial(difference, p, **changes):
    return {
        "examples": {"learnt from": 132, "held back": 33},
        "start": "fresh",
        "chosen": {"lr": 0.003, "epoch": 4, "score": 0.5},
        "scores": [
            {"name": "average", "score": 0.5 - difference, "se": 0.08},
            {"name": "trained LoRA", "score": 0.5, "se": 0.08},
        ],
        "best_merge": "average",
        "compared": {
            "trained LoRA": 0.5,
            "merge": 0.5 - difference,
            "adapters": 9,
            "merges": 4,
        },
        "difference": {"difference": difference, "se": 0.05, "p": p},
        **changes,
    }


@pytest.mark.parametrize(
    ("difference", "p", "verdict"),
    [
        (
            0.25,
            0.0001,
            "training is ahead (by .250 ± .050, p < .001): with so many examples, train",
        ),
        (-0.25, 0.01, "merging is ahead (by .250 ± .050, p = .010): there are too few examples"),
        (0.05, 0.4, "the difference (by .050 ± .050, p = .400) may be chance: neither side"),
        (0.05, None, "the examples do not say whether that is chance"),
    ],
)
def test_the_sentence_says_on_which_side_the_user_is(difference, p, verdict):
    (remark,) = remarks_on_trial(trial(difference, p))
    assert remark.startswith(
        "trial on 33 dev examples: .500 for a LoRA trained on 132 others "
        f"(learning rate 0.003, 4 epochs), {0.5 - difference:.3f}".replace("0.", ".", 2).replace(
            "rate .003", "rate 0.003"
        )
    )
    assert verdict in remark
    assert "(average), in the plain mean over examples; of 9 adapters and 4 merges, the" in remark
    (remark,) = remarks_on_trial(trial(difference, p, start="merge"))
    assert "trained on 132 others, from a merge on (" in remark


def test_tasks_that_were_not_trained_on_are_named():
    (remark,) = remarks_on_trial(trial(0.1, 0.001, **{"not trained on": ["judged"]}))
    assert "; judged has no right answers to learn and was not trained on; training is" in remark


def test_an_older_trial_is_read_without_the_numbers_that_were_tried():
    older = trial(0.25, 0.0001)
    del older["compared"]
    (remark,) = remarks_on_trial(older)
    assert ", .250 for the best merge (average), in the plain mean over examples; train" in remark


def many(count, metric="exact_match"):
    return Task("x", "1", metric, tuple(Example(str(i), f"{i}?", "u") for i in range(count)))


def test_many_examples_are_noted_with_what_was_measured():
    assert note_of_many_examples([many(329)]) == []
    (note,) = note_of_many_examples([many(300), many(100)])
    assert note.startswith("400 labelled dev examples may be enough to train a LoRA on them")
    assert "ahead with 169" in note and "far ahead with 650" in note
    # Between the two numbers of examples that were measured, as far from each by ratio.
    assert math.isclose(329.5 / 169, 650 / 329.5, rel_tol=0.02)


def test_a_run_without_a_trial_prints_none(capsys):
    class Run:
        settings = parse_settings(
            {"base": "b", "experts": "e", "tasks": [{"swarm_eval": "x.json"}]}, "x"
        )

    messages.print_trial(Run())
    assert capsys.readouterr().out == ""


def test_the_short_search_takes_every_example_once_an_epoch(model, tokenizer, make_adapter):
    examples = tuple(Example(str(i), f"{i} =", str(i)) for i in range(60))
    task = Task("sums", "1", "exact_match", examples)
    problem = LoRAMergeProblem(
        model, mixed_adapters(make_adapter), [task], tokenizer=tokenizer, mode="unmerged"
    )
    differentiate, seen = problem.scorer.differentiate, []

    def note(pop, tasks):
        seen.append([example.id for example in tasks[0].examples])
        return differentiate(pop, tasks)

    problem.scorer.differentiate = note
    found = search_along_gradients(problem, [task], epochs=2, seed=0)
    assert found is not None and not torch.equal(found, problem.start)
    assert [len(ids) for ids in seen] == [30, 30, 30, 30]  # 24 at least, of 60
    for epoch in (seen[:2], seen[2:]):
        assert sorted(map(int, [*epoch[0], *epoch[1]])) == list(range(60))
