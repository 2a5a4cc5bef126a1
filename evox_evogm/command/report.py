"""How a finished run is shown: one table of scores in the terminal, and the same with the coefficients in Markdown."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class ScoreRow:
    """Mean scores of one model by task name, on the dev and on the test examples; higher is better."""

    name: str
    dev: dict[str, float]
    test: dict[str, float]


def sanitize(text: str) -> str:
    """A text on one line, without characters that steer a terminal or change the direction of writing."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def mean(scores: dict[str, float]) -> float:
    """The mean over tasks."""
    return sum(scores.values()) / len(scores)


def _cells(rows: list[dict]) -> list[list[str]]:
    """Header and rows: per task and for the mean, dev and test as one cell `dev / test`."""
    tasks = list(rows[0]["dev"])
    table = [["model", *map(sanitize, tasks), "mean"]]
    for row in rows:
        pairs = [(row["dev"][task], row["test"][task]) for task in tasks] + [
            (mean(row["dev"]), mean(row["test"]))
        ]
        table.append(
            [sanitize(row["name"]), *(f"{_short(dev)} / {_short(test)}" for dev, test in pairs)]
        )
    return table


def _short(score: float) -> str:
    return f"{score:.3f}".replace("0.", ".", 1) if 0 <= score < 1 else f"{score:.3f}"


def score_table(rows: list[dict]) -> str:
    """A plain-text table of `dev / test` scores, one model a line.

    :param rows: `ScoreRow`s as tables, such as `result["scores"]`.
    """
    table = _cells(rows)
    widths = [max(len(row[i]) for row in table[1:]) for i in range(len(table[0]))]
    # Long task names take several header lines, so that the columns stay about as narrow as the numbers.
    header = [_fold(text, width) for text, width in zip(table[0], widths, strict=True)]
    widths = [max(width, *map(len, parts)) for width, parts in zip(widths, header, strict=True)]
    lines = [
        [parts[line] if line < len(parts) else "" for parts in header]
        for line in range(max(map(len, header)))
    ]
    lines += [["-" * width for width in widths], *table[1:]]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _fold(name: str, width: int) -> list[str]:
    """Break a name after underscores into lines of about `width` characters."""
    lines = [""]
    for word in re.split(r"(?<=_)", name):
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += word
    return lines


def _bar(value: float, scale: float) -> str:
    return ("+" if value > 0 else "-") * round(20 * abs(value) / scale) if scale else ""


def report_markdown(result: dict) -> str:
    """The report of a run.

    :param result: what `result.json` holds.
    """
    table = _cells(result["scores"])
    lines = [
        "# Merge report",
        "",
        "Scores are `dev / test`, higher is better. The search saw only the dev examples.",
        "",
    ]
    lines += [f"| {' | '.join(map(_escape, table[0]))} |", f"|{' --- |' * len(table[0])}"]
    lines += [f"| {' | '.join(map(_escape, row))} |" for row in table[1:]]
    scale = max(abs(value) for value in result["coefficients"].values())
    lines += ["", "## Coefficients", ""]
    if result["regmean"]:
        lines += ["Of the experts regressed on their tasks: 1 for each is the RegMean merge.", ""]
    lines += ["| expert | coefficient | |", "| --- | ---: | --- |"]
    lines += [
        f"| {_escape(name)} | {value:+.4f} | `{_bar(value, scale)}` |"
        for name, value in result["coefficients"].items()
    ]
    lines += [
        "",
        "## How it was made",
        "",
        "| task | rule | dev | test | version |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    lines += [
        f"| {_escape(name)} | {task['rule']} | {task['dev']} | {task['test']} | {_escape(task['version'])} |"
        for name, task in result["tasks"].items()
    ]
    given_up = result["full_evaluations"] < result["evaluations"]
    effort = (
        f" (some given up early: as much as {result['full_evaluations']:.1f} full ones)"
        if given_up
        else ""
    )
    versions = ", ".join(f"{package} {number}" for package, number in result["versions"].items())
    lines += [
        "",
        f"{result['evaluations']} evaluations{effort}, seed {result['seed']}, {result['dtype']} on {result['device']} "
        f"({result['threads']} threads), {result['seconds']:.0f} s of evaluation. {versions}.",
    ]
    if result["adapter"]:
        lines += [
            "",
            f"`{result['adapter']['folder']}/` is the merge as one LoRA adapter. Loaded with plain peft, it equals the sum of "
            f"the experts within {result['adapter']['largest_relative_difference']:.1e} (relative).",
        ]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    """Keep a name from starting a cell, a link (also one without brackets) or markup of its own."""
    escaped = "".join(
        "\\" + char if char in "|`*_[]<>#&:@!~\\" else char for char in sanitize(text)
    )
    return escaped.replace("www.", "www\\.")
