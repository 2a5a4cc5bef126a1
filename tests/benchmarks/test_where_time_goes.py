"""Where the time of passes and steps goes, with tiny shapes."""

import time

import pytest
import torch

from benchmarks.gpu import where_time_goes

CPU = torch.device("cpu")


def test_operators_and_the_clock_count():
    numbers = torch.ones(200, 200)
    spent = where_time_goes.spend(lambda: (numbers @ numbers, time.sleep(0.02)), CPU)
    assert spent.launches >= 1 and spent.ms >= 20 > spent.device_ms > 0


@pytest.mark.language_model
def test_passes_and_steps_have_a_row_each(capsys):
    where_time_goes.main(["--tiny", "--device", "cpu"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [
        "four merges of long prompts",
        "a pass over 256 tokens",
        "a step of 12 rows, growing cache",
        "a step of 12 rows, static cache",
    ]
    for row in rows:
        launches, device_ms, ms = (float(cell.replace(",", "")) for cell in row.split("|")[2:5])
        assert launches > 100 and device_ms > 0 and ms > 0
