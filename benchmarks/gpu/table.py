"""The table of a check of a device, from its rows."""

from collections.abc import Sequence

HEADERS = (
    "base",
    "regime",
    "ours, ms a merge",
    "mode",
    "the other mode",
    "published",
    "peft",
    "times published",
    "times peft",
    "tokens/s",
    "roofline",
    "peak, GiB",
    "allowed",
)
MISSING = "-"
CHECKS = ("scores", "contract")  # parts that say what is right


def table_of(rows: Sequence[dict]) -> str:
    """A Markdown table: a row for every base and regime that was measured."""
    by_case: dict[tuple[str, str], dict[str, dict]] = {}
    for row in rows:
        if row["part"] == "speed" and row["regime"] != MISSING:
            by_case.setdefault((row["base"], row["regime"]), {})[row["procedure"]] = row
    lines = ["| " + " | ".join(HEADERS) + " |"]
    lines.append("| --- | --- |" + " ---: | --- |" + " ---: |" * (len(HEADERS) - 4))
    for (base, regime), measured in by_case.items():
        if "unmerged" in measured or "published" in measured:
            lines.append("| " + " | ".join(_cells(base, regime, measured)) + " |")
    return "\n".join(lines)


def _cells(base: str, regime: str, measured: dict[str, dict]) -> list[str]:
    ours = [measured[mode] for mode in ("unmerged", "merged") if mode in measured]
    chosen = next((row for row in ours if row["chosen"]), ours[0] if ours else {})
    other = next((row for row in ours if row is not chosen), {})
    baselines = [measured.get(name, {}) for name in ("published", "peft")]
    cells = [base, regime, _number(chosen.get("ms")), chosen.get("procedure", MISSING)]
    cells.append(_number(other.get("ms")))
    cells += [_number(row.get("ms")) for row in baselines]
    for row in baselines:
        if "ms" in row and "ms" in chosen:
            cells.append(f"{row['ms'] / chosen['ms']:.1f}")
        else:
            cells.append(MISSING)
    cells.append(_number(chosen.get("tokens_per_second")))
    share = chosen.get("roofline")
    cells.append(MISSING if share is None else f"{100 * share:.0f} %")
    cells += [_number(chosen.get("peak_gib")), _number(chosen.get("allowed_gib"))]
    return cells


def checks_of(rows: Sequence[dict], parts: Sequence[str] = CHECKS) -> str:
    """A line for each kind of check: how many are right, and which are not.

    :param parts: the kinds that were asked for.
    """
    lines = []
    growing = {}  # tokens a second by base and regime
    for part in parts:
        checks = [row for row in rows if row["part"] == part]
        right = [row for row in checks if row["ok"]]
        lines.append(f"- {part}: {len(right)} of {len(checks)} right")
        for row in checks:
            if not row["ok"]:
                values = [f"{name} {value}" for name, value in row.items() if name != "part"]
                lines.append(f"  - {', '.join(values)}")
    for row in rows:
        if row["part"] == "step":
            runs = "" if row["runs"] == 1 else f" for {row['runs']} runs in one vmap"
            words = f"- a step of {row['algorithm']} on {row['device']}{runs}"
            lines.append(f"{words}: {row['ms']:.0f} ms")
        elif row["part"] == "speed" and row["regime"] == MISSING:
            took = f"{row['ms']:.1f} ms" if "ms" in row else f"{row['seconds']:.1f} s"
            lines.append(f"- {row['base']}, {row['procedure']}: {took}")
        elif row["part"] == "speed" and row["procedure"] == "growing cache":
            growing[row["base"], row["regime"]] = row["tokens_per_second"]
        elif row["part"] == "speed" and row["procedure"] == "static cache":
            case = row["base"], row["regime"]
            rate, static = _number(growing[case]), _number(row["tokens_per_second"])
            words = f"{static} tokens/s with a static cache, {rate} with a growing one"
            lines.append(f"- {', '.join(case)}: {words}")
        elif row["part"] == "speed" and "ok" in row:
            words = "no lack of memory" if row["ok"] else "ran out of memory"
            lines.append(f"- {row['base']} on {row['procedure']}, {row['regime']}: {words}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
