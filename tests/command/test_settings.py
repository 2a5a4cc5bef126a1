"""A settings file is read as it stands, or refused with a sentence that says what to change."""

import json
import re

import pytest
from builders_settings import NEEDED, refusal, settings_writer

from evox_evogm.command.settings import RunSettings, parse_settings
from evox_evogm.command.settings_file import read_settings
from evox_evogm.command.task_settings import TaskSettings

BUDGET = "budget: expected a whole number of evaluations, or a time such as 20min"


@pytest.fixture
def write(tmp_path):
    return settings_writer(tmp_path)


def test_a_file_with_every_setting_is_read_as_written(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        """
base: smollm2-135m-instruct
experts: {code: adapters/code, maths: adapters/maths}
tasks:
  - {swarm_eval: mmlu.json, dev: 20, test: 30}
  - json_lines: dev.jsonl
    test_file: test.jsonl
budget: 40
seed: 3
device: cpu
dtype: bfloat16
batch_tokens: 512
trust_remote_code: true
pop_size: 8
algorithm: EvoGM
mode: {mmlu: merged}
max_memory: 1
search: {n_rounds: 2, lr: 0.01}
same_base: true
chat_template: {enable_thinking: false}
chat_template_file: adapters/code
"""
    )
    settings, folder = read_settings(path)
    assert settings == RunSettings(
        base="smollm2-135m-instruct",
        experts={"code": "adapters/code", "maths": "adapters/maths"},
        tasks=[
            {"swarm_eval": "mmlu.json", "dev": 20, "test": 30},
            {"json_lines": "dev.jsonl", "test_file": "test.jsonl"},
        ],
        budget=40,
        seed=3,
        device="cpu",
        dtype="bfloat16",
        batch_tokens=512,
        trust_remote_code=True,
        pop_size=8,
        algorithm="EvoGM",
        mode={"mmlu": "merged"},
        max_memory=1,
        search={"n_rounds": 2, "lr": 0.01},
        same_base=True,
        chat_template={"enable_thinking": False},
        chat_template_file="adapters/code",
    )
    assert settings.as_table()["tasks"][0] == {"swarm_eval": "mmlu.json", "dev": 20, "test": 30}
    assert parse_settings(settings.as_table(), "") == settings
    assert folder == tmp_path


def test_what_a_file_leaves_out_has_the_stated_default(write):
    settings, _ = read_settings(write())
    assert (settings.budget, settings.seed) == (160, 0)
    assert (settings.batch_tokens, settings.max_memory) == (None, None)
    assert (settings.device, settings.dtype, settings.trust_remote_code) == ("auto", "auto", False)
    assert (settings.pop_size, settings.search) == (None, {})
    assert (settings.algorithm, settings.mode, settings.racing) == ("SurrogateEvoGM", "auto", False)
    assert (settings.same_base, settings.chat_template) == (False, None)


def test_two_runs_do_not_share_their_search_settings(write):
    one, other = read_settings(write())[0], read_settings(write())[0]
    one.search["lr"] = 1.0
    assert other.search == {}


@pytest.mark.parametrize(
    ("found", "nearest"),
    [
        ("buget", "budget"),
        ("batchtokens", "batch_tokens"),
        ("expert", "experts"),
        ("popsize", "pop_size"),
    ],
)
def test_a_misspelt_setting_is_named_with_the_nearest_one(write, found, nearest):
    path = write(**{found: 3})
    expected = f"found the unknown setting '{found}'; did you mean '{nearest}'?"
    assert refusal(path) == f"{path}: {expected}"


def test_a_setting_unlike_any_other_is_answered_with_the_list(write):
    known = ", ".join(RunSettings.model_fields)
    assert refusal(write(zzz=3)).endswith(f"found the unknown setting 'zzz'; known are {known}")


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_setting_is_named(write, name):
    path = write(**{name: None})
    assert refusal(path) == f"{path}: expected the setting '{name}', found none"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("base", "3", "base: expected a str, found 3"),
        ("tasks", "mmlu", "tasks: expected a list, found 'mmlu'"),
        (
            "tasks",
            "{swarm_eval: mmlu.json}",
            "tasks: expected a list, found {'swarm_eval': 'mmlu.json'}",
        ),
        ("budget", "many", f"{BUDGET}, found 'many'"),
        ("budget", "12.5", f"{BUDGET}, found 12.5"),
        ("budget", "true", f"{BUDGET}, found True"),
        ("seed", "null", "seed: expected a whole number, found None"),
        (
            "batch_tokens",
            "[8]",
            r"batch_tokens: expected a whole number, auto or a table, found \[8\]",
        ),
        ("device", "0", "device: expected a str, found 0"),
        ("dtype", "32", "dtype: expected a str, found 32"),
        ("trust_remote_code", "1", "trust_remote_code: expected a bool, found 1"),
        ("trust_remote_code", "sure", "trust_remote_code: expected a bool, found 'sure'"),
        ("pop_size", "2.0", "pop_size: expected a whole number, found 2.0"),
        ("pop_size", "true", "pop_size: expected a whole number, found True"),
        ("search", "[lr]", r"search: expected a dict, found \['lr'\]"),
        ("algorithm", "1", "algorithm: expected a str, found 1"),
        ("max_memory", "true", "max_memory: expected a number or auto, found True"),
        ("experts", "3", "experts: expected a folder, a list or a table, found 3"),
        ("mode", "[merged]", r'mode: expected "auto", "unmerged" or "merged", found .*'),
        (
            "regmean",
            "1",
            "regmean: expected true, weights, prompts, or a table of experts and their tasks, "
            "found 1",
        ),
    ],
)
def test_a_setting_of_the_wrong_type_is_named_with_what_was_found(write, name, value, message):
    path = write(**{name: value})
    assert re.search(f"^{re.escape(str(path))}: {message}$", refusal(path))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("budget", "0", "budget: expected at least 1, found 0"),
        ("batch_tokens", "0", "batch_tokens: expected at least 1, found 0"),
        (
            "batch_tokens",
            "{tokens: 64, step: 3}",
            "batch_tokens: expected some of tokens, rows, pass_tokens, step_tokens, static_from, "
            "found 'step'",
        ),
        ("batch_tokens", "{rows: 0}", "batch_tokens: expected rows of at least 1, found 0"),
        ("seed", "-1", "seed: expected at least 0, found -1"),
        ("dtype", "int8", "dtype: expected one of auto, float32, bfloat16, float16, found 'int8'"),
        ("tasks", "[]", "tasks: expected at least one, found none"),
        ("algorithm", "PSO", "algorithm: expected one of SurrogateEvoGM, EvoGM, .*, found 'PSO'"),
        ("max_memory", ".nan", r"max_memory: expected a number of GiB above 0 and .*, found nan"),
        ("pop_size", "0", r"pop_size: expected at least \d+, found 0"),
        ("pop_size", "-4", r"pop_size: expected at least \d+, found -4"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_limit(write, name, value, message):
    path = write(**{name: value})
    assert re.search(f"^{re.escape(str(path))}: {message}$", refusal(path))


@pytest.mark.parametrize(("name", "least"), [("budget", 1), ("batch_tokens", 1), ("seed", 0)])
def test_the_least_allowed_number_is_taken(write, name, least):
    assert getattr(read_settings(write(**{name: least}))[0], name) == least


READERS = "reasoning_gym, swarm_eval, json_lines"
TASK = {"json_lines": "dev.jsonl", "test_file": "test.jsonl", "name": "sums"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dev": True},
            "task 'sums': expected dev to be a number of examples, at least 1, found True",
        ),
        ({"chat": 1}, "task 'sums': expected chat to be true or false, found 1"),
        (
            {"max_new_tokens": "8"},
            "task 'sums': expected max_new_tokens to be a whole number, found '8'",
        ),
        (
            {"metrik": "x"},
            "task 'sums': found the unknown setting 'metrik'; did you mean 'metric'?",
        ),
        (
            {"options": {}},
            "task 'sums': found the unknown setting 'options'; known are json_lines, dev, test",
        ),
        ({"swarm_eval": "a"}, f"tasks: expected a table with one of {READERS}"),
        ({"json_lines": None}, f"tasks: expected a table with one of {READERS}"),
        ({"json_lines": 3, "name": None}, "task 3: expected json_lines to be a text, found 3"),
    ],
)
def test_a_task_that_cannot_be_used_is_named_with_what_was_found(write, changes, message):
    path = write(tasks=json.dumps([{**TASK, **changes}]))
    assert refusal(path).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"search": "{proposal: paper}"},
            "search: expected arguments of the algorithm, found proposal 'paper'; "
            "write algorithm: EvoGM beside search, in place of proposal",
        ),
        (
            {"search": "{proposal: screened}"},
            "search: expected arguments of the algorithm, found proposal 'screened'; "
            "write algorithm: SurrogateEvoGM beside search, in place of proposal",
        ),
        (
            {"path": "factored"},
            "expected the setting 'mode', found its former name 'path'; "
            "write mode instead, and unmerged instead of factored",
        ),
        (
            {"tasks": "[{swarm_eval: a.json, rule: exact_match}]"},
            "task 'a.json': expected the setting 'metric', found its former name 'rule'; "
            "write metric: exact_match",
        ),
    ],
)
def test_a_former_name_is_answered_with_what_to_write_instead(write, changes, message):
    path = write(**changes)
    assert refusal(path) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("changes", "groups"),
    [
        ({}, "expert"),
        ({"algorithm": "GradientSearch"}, "module"),
        ({"algorithm": "GradientSearch", "groups": "expert"}, "expert"),
    ],
)
def test_gradients_have_a_coefficient_per_module_unless_groups_are_named(write, changes, groups):
    assert read_settings(write(**changes))[0].groups == groups


def test_only_the_search_with_a_surrogate_can_prune(write):
    assert read_settings(write(racing="true"))[0].racing
    expected = "racing: expected false with algorithm EvoGM, found true"
    assert expected in refusal(write(racing="true", algorithm="EvoGM"))


@pytest.mark.parametrize("settings", [RunSettings, TaskSettings])
def test_every_setting_says_what_it_does(settings):
    for name, field in settings.model_fields.items():
        assert field.description and field.description.endswith("."), name
        assert settings.expected(name)
