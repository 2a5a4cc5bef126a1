"""Settings and budgets on the command line."""

import pytest

from evox_evogm.command.overrides import apply_overrides
from evox_evogm.command.settings_file import read_settings
from evox_evogm.monitoring.budget import Budget, parse_budget


def table():
    return {
        "budget": 60,
        "search": {"epochs": 50, "lr": 0.1},
        "tasks": [{"reasoning_gym": "gcd", "dev": 2}, {"reasoning_gym": "lcm", "dev": 3}],
    }


@pytest.mark.parametrize(
    ("word", "path", "value"),
    [
        ("budget=80", ["budget"], 80),
        ("budget=20min", ["budget"], "20min"),
        ("search.epochs=7", ["search", "epochs"], 7),
        ("search.hidden_dims=[4, 8]", ["search", "hidden_dims"], [4, 8]),
        ("tasks.1.dev=9", ["tasks", 1, "dev"], 9),
        ("tasks.0.options.min_terms=2", ["tasks", 0, "options", "min_terms"], 2),
        ("tasks.1={reasoning_gym: bf, dev: 1}", ["tasks", 1], {"reasoning_gym": "bf", "dev": 1}),
        ("mode={quiz: merged}", ["mode"], {"quiz": "merged"}),
        ("racing=true", ["racing"], True),
        ("regmean=", ["regmean"], None),
        ("chat_template_file=a=b", ["chat_template_file"], "a=b"),
        ("chat_template.enable_thinking=false", ["chat_template", "enable_thinking"], False),
    ],
)
def test_a_word_sets_one_value_and_leaves_all_others(word, path, value):
    values = table()
    apply_overrides(values, [word])
    owner = values
    for name in path[:-1]:
        owner = owner[name]
    assert owner[path[-1]] == value and type(owner[path[-1]]) is type(value)
    before = table()
    if path[0] not in before:
        del values[path[0]]
    elif len(path) == 1:
        values["budget"] = before["budget"]
    else:
        values[path[0]] = before[path[0]]
    assert values == before


def test_of_two_words_the_later_one_counts():
    values = table()
    apply_overrides(values, ["budget=1", "search.lr=2", "budget=3", "search={lr: 4}"])
    assert values["budget"] == 3 and values["search"] == {"lr": 4}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("budget", "expected settings as key=value, such as budget=80 .*, found 'budget'"),
        ("=3", "expected settings as key=value"),
        ("search..lr=3", "expected settings as key=value"),
        ("budget.more=3", "expected a table or a list in 'budget.more=3', found budget 60"),
        ("tasks.2.dev=3", "expected a number from 0 to 1 in 'tasks.2.dev=3', found '2'"),
        ("tasks.first.dev=3", "expected a number from 0 to 1 in .*, found 'first'"),
        ("mode={quiz", "expected YAML after the = of 'mode={quiz'"),
    ],
)
def test_a_word_that_leads_nowhere_is_refused(word, message):
    with pytest.raises(ValueError, match=message):
        apply_overrides(table(), [word])


def test_what_words_set_is_checked_as_the_file_is(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("{base: b, experts: e, tasks: [{reasoning_gym: gcd, dev: 1, test: 1}]}")
    settings, _ = read_settings(path, ["search.epochs=3", "tasks.0.dev=4", "budget='7'"], seed=5)
    assert settings.search == {"epochs": 3} and settings.tasks[0].dev == 4
    assert (settings.budget, settings.seed) == (7, 5)
    with pytest.raises(ValueError, match="unknown setting 'bugdet'; did you mean 'budget'"):
        read_settings(path, ["bugdet=3"])
    with pytest.raises(ValueError, match="found 'lr' twice"):
        read_settings(path, ["search={lr: 1, lr: 2}"])


@pytest.mark.parametrize(
    ("value", "budget"),
    [
        (60, Budget(60)),
        ("60", Budget(60)),
        ("90s", Budget(seconds=90.0)),
        ("20min", Budget(seconds=1200.0)),
        (" 1.5 h ", Budget(seconds=5400.0)),
    ],
)
def test_a_budget_is_a_number_or_a_time(value, budget):
    assert parse_budget(value) == budget


@pytest.mark.parametrize("value", ["many", "20 minutes", "-3", "1e3", "0s", "99999999999h", "", 0])
def test_other_budgets_are_refused(value):
    with pytest.raises(ValueError, match="^budget: expected"):
        parse_budget(value)


def test_budgets_in_words():
    words = [str(parse_budget(value)) for value in (1, 60, "90s", "20min", "2h")]
    assert words == ["1 evaluation", "60 evaluations", "1.5 min", "20 min", "120 min"]
