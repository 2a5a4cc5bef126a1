"""Pictures of the results pages whose runs are not kept: the first table of a page as bars.

    python -m benchmarks.page_plots                 # every page of `PAGES`, beside it
    python -m benchmarks.page_plots twenty_experts

Pages whose runs are kept have curves instead: `python -m benchmarks.compare report --svg FILE`.
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from benchmarks.plots import draw_bars

RESULTS = Path(__file__).parent / "results"


class Bars(NamedTuple):
    """What of a page's first table is drawn.

    columns: headers of the table, a bar each.
    xlabel: what the bars show.
    logarithmic: the scale of x.
    rows: how many of the first rows; by default all.
    """

    columns: list[str]
    xlabel: str
    logarithmic: bool = False
    rows: int | None = None


PAGES = {
    "64_experts": Bars(["dev at 160", "dev at 640", "test"], "score"),
    "controls": Bars(
        [
            "random adapters of the same norms, over the base",
            "shuffled answers in dev, over the average",
        ],
        "what the search gains on test",
    ),
    "demo": Bars(["dev", "test"], "score"),
    "evaluation_speed": Bars(
        [
            "short: 452 prompt tokens",
            "long: 5,198",
            "generated, 8 examples: 271",
            "generated, 64: 2,054",
        ],
        "ms a merge",
        logarithmic=True,
        rows=5,
    ),
    "evox_functions": Bars(["mean rank"], "mean rank, 1 is best"),
    "experts": Bars(["base", "expert"], "score on its own source"),
    "fewer_experts": Bars(["2", "5", "10", "20"], "test score by number of experts"),
    "gradients": Bars(["dev of the recommended", "test"], "score"),
    "stopping": Bars(["dev of the recommended", "test"], "score"),
    "long_run": Bars(["resident memory, MiB"], "resident memory, MiB, by evaluations"),
    "paper_method": Bars(["dev", "EvoGM, dev"], "dev score with the change, and without"),
    "racing": Bars(["dev: racing", "without"], "dev score by evaluations' worth"),
    "recommendation": Bars(["recommended", "best on dev"], "test score"),
    "regmean": Bars(["dev at 60", "test"], "score"),
    "smollm2": Bars(["at 60", "test"], "score"),
    "static_merges": Bars(["dev", "test"], "score"),
    "step": Bars(["faster than the plain loop"], "times as fast as the plain loop"),
    "surrogate_design": Bars(
        ["dev", "SurrogateEvoGM, dev"], "dev score with the change, and without"
    ),
    "surrogate_parts": Bars(
        ["dev", "SurrogateEvoGM, dev"], "dev score of the part, and of the whole"
    ),
    "twenty_experts": Bars(["dev at 40", "dev at 160", "test"], "score"),
}


def first_table(text: str) -> pd.DataFrame:
    """The first Markdown table of a page, a row a name, its cells as text."""
    block = re.search(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert block is not None, "the page has no table"
    header, _, *rows = block[0].splitlines()
    cells = [split_row(row) for row in rows]
    names = [row[0] for row in cells]
    return pd.DataFrame([row[1:] for row in cells], index=names, columns=split_row(header)[1:])


def split_row(line: str) -> list[str]:
    return [cell.strip().strip("*`") for cell in line.strip().strip("|").split("|")]


def number(cell: str) -> float:
    """The number that a cell begins with; NaN where there is none."""
    found = re.match(r"[-+]?[\d,]*\.?\d+", cell)
    return float(found[0].replace(",", "")) if found else float("nan")


def values_of(page: str) -> pd.DataFrame:
    """The numbers that the picture of a page shows; rows without any are left out."""
    table = first_table((RESULTS / f"{page}.md").read_text(encoding="utf-8"))
    table = table.loc[:, ~table.columns.duplicated()]
    bars = PAGES[page]
    return table[bars.columns].map(number).dropna(how="all").iloc[: bars.rows]


def main() -> None:
    for page in sys.argv[1:] or PAGES:
        bars = PAGES[page]
        path = RESULTS / f"{page}.svg"
        draw_bars(values_of(page), path, xlabel=bars.xlabel, logarithmic=bars.logarithmic)
        print(path)


if __name__ == "__main__":
    main()
