"""Lines of work that goes on: some while it lasts, none once it is over."""

import re
import time

from evox_evogm.monitoring.display.heartbeat import Heartbeat


def test_lines_come_while_the_work_goes_on_and_end_with_it(capsys):
    with Heartbeat("scoring", every=0.01):
        time.sleep(0.2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1
    assert all(re.fullmatch(r"    still scoring, 0 min so far", line) for line in lines)
    time.sleep(0.05)
    assert capsys.readouterr().out == ""


def test_short_work_has_no_line(capsys):
    with Heartbeat("scoring"):
        pass
    assert capsys.readouterr().out == ""
