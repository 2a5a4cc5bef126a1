"""Which display a search gets."""

import sys

from rich.console import Console

from evox_evogm.monitoring.display.facts import RunFacts
from evox_evogm.monitoring.display.lines import JsonLines, ProgressLines, Quiet
from evox_evogm.monitoring.display.live import LiveDisplay

Display = LiveDisplay | ProgressLines | JsonLines | Quiet


def show_progress(
    console: Console, facts: RunFacts, *, quiet: bool = False, json_lines: bool = False
) -> Display:
    """What shows the progress of a search, as a context.

    :param console: where a live display, on a terminal, or lines, elsewhere, go.
    :param facts: the names of what is shown.
    :param quiet: show nothing.
    :param json_lines: write JSON lines to stdout instead.
    """
    if json_lines:
        return JsonLines(sys.stdout)
    if quiet:
        return Quiet()
    return LiveDisplay(console, facts) if console.is_terminal else ProgressLines(console)
