"""What a person reads at the end, compared to the letter."""

from evox_evogm.report import report_markdown, score_table

ROWS = [
    {"name": "base", "dev": {"add": 0.25, "long_task_name": 1.0}, "test": {"add": 0.5, "long_task_name": 0.0}},
    {"name": "EvoGM", "dev": {"add": 0.75, "long_task_name": 0.5}, "test": {"add": 0.125, "long_task_name": -0.25}},
]


def test_the_table_shows_dev_and_test_of_every_task_and_their_mean():
    assert score_table(ROWS).splitlines() == [
        "model  add          long_task_     mean",
        "                    name",
        "-----  -----------  -------------  -------------",
        "base   .250 / .500  1.000 / .000   .625 / .250",
        "EvoGM  .750 / .125  .500 / -0.250  .625 / -0.062",
    ]


def test_the_report_says_how_the_result_was_made_and_no_name_is_markup():
    result = {
        "scores": ROWS,
        "coefficients": {"a|b": 0.5, "<script>": -1.0},
        "tasks": {"add": {"rule": "exact_match", "dev": 4, "test": 8, "version": "x"}},
        "versions": {"torch": "2.13.0"},
        "evaluations": 16,
        "seed": 3,
        "dtype": "float32",
        "device": "cpu",
        "threads": 2,
        "seconds": 12.0,
        "adapter": {"folder": "adapter", "largest_relative_difference": 1e-8},
    }
    text = report_markdown(result)
    assert "| a\\|b | +0.5000 | `++++++++++` |" in text
    assert "| \\<script\\> | -1.0000 | `--------------------` |" in text
    assert "| add | exact_match | 4 | 8 | x |" in text
    assert "16 evaluations, seed 3, float32 on cpu (2 threads), 12 s in all. torch 2.13.0." in text
