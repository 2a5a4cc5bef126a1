"""`evogm settings` says of every key what the settings themselves say."""

import json

import pytest
import yaml

from evox_evogm.command import cli
from evox_evogm.command.settings import RunSettings
from evox_evogm.command.task_settings import TaskSettings


def printed(capsys, *words):
    assert cli.main(["settings", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("words", "model"), [((), RunSettings), (("tasks",), TaskSettings)])
def test_every_key_has_its_type_default_and_meaning(words, model, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    text = printed(capsys, *words)
    assert max(map(len, text.splitlines())) <= 70
    blocks = {}
    for block in text.split("\n\n")[1:]:
        name, _, rest = " ".join(block.split()).partition(": ")
        blocks[name] = rest
    assert list(blocks) == list(model.model_fields)
    for name, field in model.model_fields.items():
        assert " ".join(field.description.split()) in blocks[name]
        if name not in ("algorithm", "dtype", "objective", "adapter_dtype"):
            assert blocks[name].startswith(model.expected(name))
        if field.is_required():
            assert "; required " in blocks[name]
        else:
            default = blocks[name].split("; default ")[1]
            value = yaml.safe_load(default.removesuffix(field.description).strip())
            assert value == field.get_default(call_default_factory=True)


def test_a_list_of_texts_is_shown_whole(capsys):
    text = " ".join(printed(capsys, "dtype").split())
    assert text.startswith("dtype: one of auto, float32, bfloat16, float16; default auto ")


def test_single_keys_are_described_alone(capsys):
    assert printed(capsys, "pop_size").startswith("pop_size: ")
    seeds = printed(capsys, "seed")  # of the search, and of the questions of a task
    assert seeds.count("seed: a whole number; default 0") == 2
    assert "Of the search." not in printed(capsys, "tasks.seed")


def test_the_schema_accepts_what_the_settings_accept_and_no_more(capsys):
    schema = json.loads(printed(capsys, "--schema"))
    assert set(schema["properties"]) == set(RunSettings.model_fields)
    assert schema["additionalProperties"] is False
    task = schema["$defs"]["TaskSettings"]
    assert set(task["properties"]) == set(TaskSettings.model_fields)
    assert schema["required"] == ["base", "experts", "tasks"]
