"""Each message of the guide is what the command says when that happens."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from builders import build_model, change_settings, interrupt_searches, merge
from builders_images import build_image_model
from guides import ROOT
from harness_tasks import write_task
from safetensors.torch import load_file, save_file

from evox_evogm.command import cli
from evox_evogm.command.merge_run import MergeRun
from evox_evogm.problems import retries
from evox_evogm.problems.population_scorer import PopulationScorer

GUIDE = ROOT / "evox_evogm" / "command" / "TROUBLESHOOTING.md"
ADAPTER = "experts/first/adapter_model.safetensors"
SCENARIOS = {}


def says(message):
    """Register a scenario by the message of the guide; `...` stands for anything."""

    def register(scenario):
        SCENARIOS[message] = scenario
        return scenario

    return register


def check(project, *words):
    return cli.main(["check", str(project / "run.yaml"), *words])


def set_config(project, name="first", **changes):
    path = project / "experts" / name / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def set_tensors(project, change):
    """Replace the tensors of the first adapter by what a function makes of them."""
    path = project / ADAPTER
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def set_task(project, **changes):
    """Leave the task `sums` alone, with other settings."""
    task = {"json_lines": "dev.jsonl", "test_file": "test.jsonl", "name": "sums"}
    change_settings(project, tasks=[{**task, "metric": "exact_match", **changes}])


@says("expected adapter folders with adapter_config.json in ..., found ...")
def no_adapters(project):
    shutil.rmtree(project / "experts")
    (project / "experts").mkdir()
    return check(project)


@says("expected peft_type LORA, found 'IA3'; only LoRA adapters can be merged")
def another_kind(project):
    set_config(project, peft_type="IA3")
    return check(project)


@says("expected plain LoRA, found DoRA (use_dora is set); leave this adapter out or retrain it")
def dora(project):
    set_config(project, use_dora=True)
    return check(project)


@says("expected bias 'none', found 'all'; train the adapter without biases")
def biases(project):
    set_config(project, bias="all")
    return check(project)


@says(
    "expected plain LoRA, found modules_to_save (modules_to_save is set); "
    "leave this adapter out or retrain it"
)
def modules_to_save(project):
    set_config(project, modules_to_save=["lm_head"])
    return check(project)


@says("expected adapter_model.safetensors, found ...; save it with safe_serialization=True")
def pickles(project):
    (project / ADAPTER).rename(project / "experts/first/adapter_model.bin")
    return check(project)


@says("expected finite weights, found NaN or infinity in ...; use an earlier checkpoint")
def diverged(project):
    set_tensors(project, lambda tensors: {key: t * float("nan") for key, t in tensors.items()})
    return check(project)


@says("changes nothing, as its A or B is 0 in every module")
def not_trained(project):
    set_tensors(project, lambda tensors: {name: 0 * value for name, value in tensors.items()})
    return check(project, "budget=4")


@says("expected (inputs, outputs) ... in ..., found ...")
def a_larger_base(project):
    build_model(hidden_size=32).save_pretrained(project / "base")
    return check(project)


@says("expected a Linear, Conv1D or Embedding layer ... in the base, found ...")
def another_architecture(project):
    build_model("gpt2").save_pretrained(project / "base")
    return check(project)


@says("base: expected adapters of one base model, found ... and ...; give --base")
def two_bases(project):
    set_config(project, base_model_name_or_path="Qwen/Qwen3-4B")
    set_config(project, "second", base_model_name_or_path="meta-llama/Llama-3.1-8B")
    (project / "base").rename(project / "elsewhere")
    return cli.main(["init", str(project / "experts"), "--out", str(project / "new.yaml")])


@says("base: expected a transformers folder or hub id, found ...")
def no_network(project):
    change_settings(project, base="example/not-in-the-cache")
    return check(project)


@says("task ...: expected a language model for a task of texts, found the image model ...")
def texts_for_images(project):
    build_image_model().config.save_pretrained(project / "base")
    return check(project)


@says("base: expected a model, found an adapter in ...")
def adapter_as_base(project):
    change_settings(project, base="experts/first")
    return check(project)


@says("found the unknown setting 'bugdet'; did you mean 'budget'?")
def misspelt(project):
    change_settings(project, bugdet=60)
    return check(project)


@says("device: expected one that torch can use here, found ...")
def no_gpu(project):
    return check(project, "--device", "cuda:9")


@says("expected dev and test to share no question, found ...")
def shared_questions(project):
    shutil.copy(project / "dev.jsonl", project / "test.jsonl")
    return check(project)


@says("expected the answer to be one of A, B, found 'yes'")
def text_for_a_key(project):
    row = {"question": "Is it?", "answer": "yes", "choices": ["yes", "no"]}
    (project / "dev.jsonl").write_text(json.dumps(row))
    set_task(project, metric="choice_likelihood")
    return check(project)


@says("expected a base with a chat template for chat prompts, found ...")
def no_chat_template(project):
    set_task(project, chat=True)
    return check(project)


@says("found ... tokens with the answer, more than the ... that the base was trained on")
def too_long(project):
    build_model(max_position_embeddings=16).save_pretrained(project / "base")
    return check(project)


@says("out of memory: going on with batches of ... tokens")
def little_memory(project, monkeypatch):
    from evox_evogm.problems.inference.forward import Forward

    run = Forward.__call__

    def limited(forward, candidates, tokens, *rest, **named):
        if tokens.numel() > 256:
            raise torch.OutOfMemoryError("no memory is left")
        return run(forward, candidates, tokens, *rest, **named)

    monkeypatch.setattr(Forward, "__call__", limited)
    return merge(project, "--budget", "4")


@says("budget: expected at least one population, ... evaluations, found ...")
def small_budget(project):
    return check(project, "--budget", "1")


@says("out: expected the settings of the run in ..., found ...")
def another_run(project):
    assert merge(project, "--budget", "4", "--quiet") == 0
    return merge(project, "seed=4")


@says("expected no other process on this run, found ...")
def at_the_same_time(project):
    from evox_evogm.resume.journal import Journal

    out = project / "out"
    out.mkdir()
    journal = Journal(out / "history.jsonl")
    try:
        return merge(project)
    finally:
        journal.close()


@says("run: expected a finished run, found one without result in ...")
def not_finished(project, monkeypatch):
    interrupt_searches(monkeypatch, 1)
    assert merge(project) == cli.INTERRUPTED
    return cli.main(["export", str(project / "out")])


@says(
    "expected differences between base, experts and merges, found every score ...; "
    "the search learned nothing"
)
def nothing_to_learn(project):
    set_task(project)
    return merge(project, "--budget", "4")


@says("base, experts and merges all score ... on dev; the search learned nothing from it")
@says("The two best merges of the search are ... apart on ... dev examples")
def noise(project):
    sums, _ = yaml.safe_load((project / "run.yaml").read_text())["tasks"]
    exact = {**sums, "name": "exact", "metric": "exact_match"}  # a random base can do no sums
    change_settings(project, tasks=[sums, exact])
    return merge(project, "--budget", "4")


@says("base, experts and merge all score ... in the table, which tells none from another")
def level_rows(project, monkeypatch):
    score_rows = MergeRun.score_rows

    def level(self, best):
        rows = []
        for row in score_rows(self, best):
            rows.append(replace(row, dev={**row.dev, "sums": 0.25}, test={**row.test, "sums": 0.5}))
        return rows

    monkeypatch.setattr(MergeRun, "score_rows", level)
    set_task(project, metric="gold_log_probability")
    return merge(project, "--budget", "4")


@says("expected a task that is scored on this machine, found one that asks over the network (...)")
def judge(project):
    function = "FUNCTION judge.score"
    write_task(project / "tasks", "judged", "lengths", process_results=function)
    code = "def score(doc, results):\n    import openai\n    return {'length': openai.OpenAI()}\n"
    (project / "tasks" / "judge.py").write_text(code)
    change_settings(project, tasks=[{"lm_eval": "judged", "include_path": "tasks"}])
    return check(project)


@says("device: expected ... to answer, found that everything fails on it since ...")
def lost_device(project, monkeypatch):
    def fail(*inputs, **named):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(PopulationScorer, "score", fail)
    monkeypatch.setattr(retries, "is_lost", lambda device: True)
    set_task(project)
    return merge(project, "--budget", "4")


@says("this may be chance")
def few_questions(project):
    first, second, *_ = (project / "test.jsonl").read_text().splitlines()
    (project / "test.jsonl").write_text(f"{first}\n{second}\n")
    set_task(project, metric="gold_log_probability")
    return merge(project, "--budget", "4")


FINISHED = (too_long, little_memory, noise, level_rows, few_questions, not_trained)
STATUSES = {**dict.fromkeys(FINISHED, 0), nothing_to_learn: 3, lost_device: 1}


def messages():
    """Those of the guide, in its order."""
    return re.findall(r"^\*\*`(.+)`\*\*$", GUIDE.read_text(), flags=re.MULTILINE)


def test_the_guide_has_the_messages_of_the_scenarios():
    assert sorted(messages()) == sorted(SCENARIOS)


@pytest.mark.parametrize("scenario", sorted(set(SCENARIOS.values()), key=lambda s: s.__name__))
def test_the_command_says_what_the_guide_says(project, capsys, caplog, monkeypatch, scenario):
    arguments = [project, monkeypatch] if scenario.__code__.co_argcount == 2 else [project]
    assert scenario(*arguments) == STATUSES.get(scenario, 2)
    printed = capsys.readouterr()
    said = " ".join((printed.out + printed.err + caplog.text).split())
    expected = [message for message, by in SCENARIOS.items() if by is scenario]
    assert expected
    for message in expected:
        assert re.search(re.escape(message).replace(r"\.\.\.", ".+"), said), (message, said)
