"""The YAML file of settings: found, read without code, and with other values in place."""

import re

import pytest
from builders_settings import refusal, settings_writer

from evox_evogm.command.settings_file import read_settings


@pytest.fixture
def write(tmp_path):
    return settings_writer(tmp_path)


def test_paths_are_relative_to_the_file_and_not_to_where_the_command_runs(
    write, tmp_path, monkeypatch
):
    write()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert read_settings("../run.yaml")[1] == tmp_path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"base: [unclosed\n", "expected YAML, found .+ line 2"),
        (b"base: \xff\xfe\n", "expected YAML, found .+ decode"),
        (b"", "expected a table of settings, found an empty file$"),
        (b"- base\n- experts\n", "expected a table of settings, found a list$"),
        (b"just a sentence\n", "expected a table of settings, found a text$"),
    ],
)
def test_a_file_that_is_no_table_of_settings_is_refused(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    assert re.search(f"^{re.escape(str(path))}: {message}", refusal(path))


def test_yaml_that_would_build_python_objects_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("base: !!python/object/apply:os.getcwd []\n")
    assert "expected YAML, found could not determine a constructor" in refusal(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "nowhere.yaml"
    assert refusal(path) == f"settings: expected a YAML file, found none at {path}"
    assert refusal(tmp_path) == f"settings: expected a YAML file, found the folder {tmp_path}"


def test_overrides_replace_the_file_and_none_leaves_it(write):
    settings, _ = read_settings(
        write(budget=40, seed=3, device="cuda"), budget=8, seed=None, dtype="float16", device="cpu"
    )
    assert (settings.budget, settings.seed, settings.dtype, settings.device) == (
        8,
        3,
        "float16",
        "cpu",
    )


def test_an_override_of_zero_is_taken_and_not_mistaken_for_none(write):
    assert read_settings(write(seed=3), seed=0)[0].seed == 0


def test_overrides_are_checked_as_the_file_is(write):
    path = write()
    assert refusal(path, budget=0) == f"{path}: budget: expected at least 1, found 0"
    assert refusal(path, dtype="half").startswith(f"{path}: dtype: expected one of auto, float32")


def test_a_key_that_is_there_twice_is_refused_wherever_it_stands(write):
    path = write(search="{lr: 1, lr: 2}")
    assert "expected different names in a table, found 'lr' twice" in refusal(path)


def test_a_base_beside_the_experts_need_not_be_named(write, tmp_path):
    (tmp_path / "adapters" / "base").mkdir(parents=True)
    (tmp_path / "adapters" / "base" / "config.json").write_text("{}")
    assert read_settings(write(base=None))[0].base == "adapters/base"
    assert read_settings(write())[0].base == "some/model"
