"""What a person reads at the end, compared to the letter."""

from evox_evogm.command.report import report_markdown, sanitize, score_table

ROWS = [
    {
        "name": "base",
        "dev": {"add": 0.25, "long_task_name": 1.0},
        "test": {"add": 0.5, "long_task_name": 0.0},
    },
    {
        "name": "EvoGM",
        "dev": {"add": 0.75, "long_task_name": 0.5},
        "test": {"add": 0.125, "long_task_name": -0.25},
    },
]


def test_the_table_shows_dev_and_test_of_every_task_and_their_mean():
    assert score_table(ROWS).splitlines() == [
        "model  add          long_task_     mean",
        "                    name",
        "-----  -----------  -------------  -------------",
        "base   .250 / .500  1.000 / .000   .625 / .250",
        "EvoGM  .750 / .125  .500 / -0.250  .625 / -0.062",
    ]


def report(coefficients):
    result = {
        "scores": ROWS,
        "coefficients": coefficients,
        "tasks": {"add": {"metric": "exact_match", "dev": 4, "test": 8, "version": "x"}},
        "versions": {"torch": "2.13.0"},
        "evaluations": 16,
        "full_evaluations": 16.0,
        "regmean": False,
        "seed": 3,
        "dtype": "float32",
        "device": "cpu",
        "threads": 2,
        "seconds": 12.0,
        "adapter": {"folder": "adapter", "largest_relative_difference": 1e-8},
    }
    return report_markdown(result)


def test_the_report_says_how_the_result_was_made_and_no_name_is_markup():
    text = report({"a|b": 0.5, "<script>": -1.0})
    assert "| a\\|b | +0.5000 | `++++++++++` |" in text
    assert "| \\<script\\> | -1.0000 | `--------------------` |" in text
    assert "| add | exact_match | 4 | 8 | x |" in text
    assert (
        "16 evaluations, seed 3, float32 on cpu (2 threads), 12 s of evaluation. torch 2.13.0."
        in text
    )


NAME = "a\x1b[31m|`x`\u202e\n&lt; https://evil.org www.evil.org !me"


def test_a_name_is_shown_without_what_would_steer_a_terminal():
    rows = [{**row, "name": NAME} for row in ROWS]
    assert sanitize(NAME) == "a [31m|`x` &lt; https://evil.org www.evil.org !me"
    assert score_table(rows).splitlines()[3].startswith(sanitize(NAME) + "  .250 / .500")


def test_no_name_is_a_link_an_entity_or_a_cell_of_the_report():
    text = report({NAME: 1.0})
    assert r"| a \[31m\|\`x\` \&lt; https\://evil.org www\.evil.org \!me | +1.0000 |" in text
    assert "\x1b" not in text and "\u202e" not in text
