"""Harness tasks whose scoring asks a judge, runs code, lacks a metric, or fails: a sentence."""

from pathlib import Path

import pytest
from harness_tasks import metrics, write_task

from evox_evogm.problems import read_lm_eval
from evox_evogm.problems.functions.code_uses import uses_in
from evox_evogm.problems.tasks.harness.check_scoring import NETWORK, RUNS_CODE, TASKS
from evox_evogm.problems.tasks.harness.source import ScoringFailed

pytestmark = pytest.mark.lengthy  # lm-eval takes seconds to import
JUDGE = """
import json

def by_requests(doc, results):
    import requests
    return {"good": requests.post("http://judge", json=results).json()["score"]}

def _client():
    from openai import OpenAI
    return OpenAI()

def by_openai(doc, results):
    return {"good": float(_client().responses.create(input=results[0]).output_text)}

def filtered(resps, docs):
    import httpx
    return [httpx.get(resp[0]) for resp in resps]

def metric(references, predictions, **kwargs):
    import urllib.request
    return urllib.request.urlopen("http://judge").read()

def by_exec(doc, results):
    open("ran", "w").close()
    exec(results[0])
    return {"good": 1.0}

def by_program(doc, results):
    import subprocess
    return {"good": float(subprocess.run(["python", "-c", results[0]]).returncode == 0)}

def as_json(doc, results):
    return {"good": float(json.loads(results[0]))}

def local(doc, results):
    return {"good": float(len(results[0]))}

def local_names(doc, results):
    requests = [exec for exec in results]
    eval = len(requests[0])
    return {"good": float(eval)}
"""
FILTER = [{"name": "f", "filter": [{"function": "custom", "filter_fn": "FUNCTION judge.filtered"}]}]
OWN = [{"metric": "FUNCTION judge.metric", "aggregation": "mean", "higher_is_better": True}]
OFFLINE = {"metric": "bleurt", "aggregation": "mean", "higher_is_better": True}


@pytest.fixture
def read(tmp_path):
    """A function that writes a task with other functions for its scores, and reads it."""

    def read_one(function="local", confirm_unsafe_code=False, **changes):
        folder = tmp_path / "tasks"
        if function is not None:
            changes["process_results"] = f"FUNCTION judge.{function}"
            changes["metric_list"] = metrics("good")
        write_task(folder, "judged", "answers", **changes)
        (folder / "judge.py").write_text(JUDGE)
        return read_lm_eval(
            "judged", include_path=str(folder), confirm_unsafe_code=confirm_unsafe_code
        )

    return read_one


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"function": "by_requests"}, "asks over the network (requests in judge.py); take another"),
        ({"function": "by_openai"}, "(openai.OpenAI in judge.py)"),
        ({"filter_list": FILTER}, "(httpx in judge.py)"),
        ({"function": None, "metric_list": OWN}, "(urllib.request.urlopen in judge.py)"),
        ({"function": "by_exec"}, "true for a task that runs code which the model writes (exec in"),
        ({"function": "by_program"}, "(subprocess in judge.py), found none; run it in a container"),
        pytest.param(
            {"function": None, "metric_list": [OFFLINE]},
            "expected metrics that lm-eval or the package evaluate has, found 'bleurt'",
            marks=pytest.mark.slow,  # evaluate takes seconds to import
        ),
    ],
)
def test_what_can_be_told_beforehand_is_refused_in_a_sentence(read, settings, expected):
    with pytest.raises(ValueError) as raised:
        read(**settings)
    message = str(raised.value)
    assert message.startswith("lm_eval task 'judged': expected ") and expected in message
    assert "\n" not in message


def test_metrics_of_a_language_model_as_judge_are_refused_by_their_name(read):
    name = "llm_as_judge.rating.template"
    with pytest.raises(ValueError, match="asks over the network .llm_as_judge.rating.template."):
        read(function=None, process_results="FUNCTION judge.local", metric_list=metrics(name))


@pytest.mark.parametrize("function", ["local", "local_names"])
def test_scoring_on_this_machine_is_not_refused(read, function):
    dev, _ = read(function)
    assert dev.metric.startswith("good")


def test_code_may_be_confirmed_and_runs_only_to_score_answers(read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = read("by_exec", confirm_unsafe_code=True)[0].examples[0].source
    assert not (tmp_path / "ran").exists()
    assert source.score([0], [["import os"]]).tolist() == [1.0]
    assert (tmp_path / "ran").exists()


def test_code_that_fails_on_an_answer_is_a_sentence_with_the_name_of_its_task(read):
    source = read("as_json")[0].examples[0].source
    assert source.score([0, 1], [["3"], [" 4"]]).tolist() == [3.0, 4.0]
    with pytest.raises(ScoringFailed) as raised:
        source.score([0], [["three"]])
    expected = "lm_eval task 'judged': expected scores of its answers, found that its own code"
    assert str(raised.value).startswith(f"{expected} failed: JSONDecodeError: Expecting value")


def test_memory_that_ran_out_stays_what_it_is(read, monkeypatch):
    source = read()[0].examples[0].source

    def process_results(doc, results):
        raise MemoryError

    monkeypatch.setattr(source.task, "process_results", process_results)
    with pytest.raises(MemoryError):
        source.score([0], [["3"]])


@pytest.mark.parametrize(
    ("file", "name", "names", "expected"),
    [
        ("pisa/utils.py", "pisa_process_results_llm_judged", NETWORK, True),
        ("pisa/utils.py", "pisa_process_results", NETWORK, False),
        ("realtoxicityprompts/metric.py", "toxicity_perspective_api", NETWORK, True),
        ("cruxeval/utils.py", "pass_at_k", RUNS_CODE, True),
        ("minerva_math/utils.py", "process_results", (*NETWORK, *RUNS_CODE), False),
        ("ifeval/utils.py", "process_results", (*NETWORK, *RUNS_CODE), False),
    ],
)
def test_the_functions_of_the_harness_are_told_apart_by_their_files(file, name, names, expected):
    import lm_eval

    path = Path(lm_eval.__file__).parent / "tasks" / file
    if not path.is_file():
        pytest.skip("not in this version of lm-eval")
    uses = [use.what for use in uses_in(path, name, TASKS)]
    assert uses and any(use.startswith(names) for use in uses) is expected
