"""The page for users of other tools names only what there is here."""

import inspect
import re
from pathlib import Path

import pytest
import yaml

from evox_evogm import EvoGM
from evox_evogm.command import exports
from evox_evogm.command.settings import RunSettings
from evox_evogm.command.task_settings import TaskSettings
from evox_evogm.problems.tasks.task import METRIC_NAMES as METRICS

METRIC_NAMES = set(METRICS)
PAGE = Path(__file__).parents[2] / "evox_evogm" / "command" / "COMING_FROM.md"
KEYS = set(RunSettings.model_fields) | set(TaskSettings.model_fields)


def codes_in_the_last_column():
    """The codes of the tables that say what something is called here."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and " --- " not in line:
            found += re.findall(r"`([^`]+)`", line.split(" | ")[-1])
    return found


def settings_in_the_last_column():
    return [code for code in codes_in_the_last_column() if re.match(r"\w+: ", code)]


def test_there_are_tables():
    assert len(settings_in_the_last_column()) > 20


@pytest.mark.parametrize("code", sorted(set(settings_in_the_last_column())))
def test_a_setting_is_yaml_and_its_keys_exist(code):
    table = yaml.safe_load(code)
    assert set(table) <= KEYS
    for entry in table.get("tasks", []):
        assert set(entry) <= set(TaskSettings.model_fields)
    if isinstance(table.get("search"), dict):
        assert set(table["search"]) <= set(inspect.signature(EvoGM).parameters)


def test_words_alone_are_keys_metrics_or_functions():
    words = {code for code in codes_in_the_last_column() if re.fullmatch(r"[a-z]+(_[a-z]+)+", code)}
    assert len(words) > 5
    for word in words - KEYS - METRIC_NAMES:
        assert hasattr(exports, word), word


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / target).exists(), target
