"""A chat template that writes the date: a run keeps the date of the day on which it began."""

import datetime
from types import SimpleNamespace

import yaml
from builders import change_settings, history, merge

from evox_evogm.problems import scored_models

TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}{{ strftime_now('%d %b %Y') }} "


def set_day(monkeypatch, year, month, day):
    class Date(datetime.date):
        @classmethod
        def today(cls):
            return datetime.date(year, month, day)

    monkeypatch.setattr(scored_models, "datetime", SimpleNamespace(date=Date))


def test_a_run_that_goes_on_on_another_day_has_the_prompts_of_the_first(
    project, monkeypatch, capsys
):
    (project / "dated.jinja").write_text(TEMPLATE)
    config = yaml.safe_load((project / "run.yaml").read_text())
    tasks = [{**task, "chat": True} for task in config["tasks"] if "json_lines" in task]
    assert tasks
    change_settings(project, chat_template_file="dated.jinja", tasks=tasks)
    set_day(monkeypatch, 2025, 3, 1)
    assert merge(project, "budget=4", out="cut") == 0
    assert merge(project, "budget=8", out="whole") == 0
    saved = yaml.safe_load((project / "cut" / "config.yaml").read_text())
    assert saved["chat_date"] == "2025-03-01"
    set_day(monkeypatch, 2025, 3, 2)
    assert merge(project, "budget=8", out="cut") == 0
    assert history(project / "cut") == history(project / "whole")
    capsys.readouterr()
    assert merge(project, "budget=8", "chat_date=2025-03-02", out="cut") == 2
    error = capsys.readouterr().err
    assert "found chat_date '2025-03-02' where it has '2025-03-01'" in error
