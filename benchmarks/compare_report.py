"""Tables from the files that `compare.py run` wrote; layouts after the tables of the EvoGM paper.

Everything goes to standard output as Markdown, plots (`compare_plots.py`) to the folder `report` beside the files. The tables
of a folder, and which of the paper's they follow: scores by evaluations with ranks and tests (3 and 4), time (7), scores by
task with the static merges (1), what a change of EvoGM costs (5 and 11), its settings (12), and over the folders the number of
experts (13).
"""

import json
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
from compare_runs import (
    Run,
    corrected_tests,
    evaluations,
    final,
    holm,
    mean_ranks,
    of_group,
    on_shared_seeds,
    read_runs,
)

AT = (1, 40, 60, 80, 160, 320, 640)  # evaluations of which the best dev score is shown
KEYS_OF_TIME = ("evaluations", "seconds", "seconds of evaluation")
ON_SCORES = "EvoGM scores"  # the one that gets no outcomes, as all others
CHANGED = {  # by group of methods: what they are compared with, and what they are
    "parts": ("EvoGM", "part"),
    "design": ("EvoGM", "design"),
    "scores": (ON_SCORES, "on scores alone"),
    "ablations": ("EvoGM paper", "change"),
    "sweeps": ("EvoGM paper", "setting"),
}


def print_table(header: list[str], rows: list[list]) -> None:
    print("\n| " + " | ".join(header) + " |\n| --- |" + " ---: |" * (len(header) - 1))
    for row in rows:
        print(
            "| "
            + " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row)
            + " |"
        )


def with_deviation(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1) if len(values) > 1 else 0:.3f}"


def print_summary(runs: dict[str, list[Run]], reference: str, *, paired: bool) -> None:
    """Best dev score by evaluations, test score, and what it took; ranks and tests of the methods with the most seeds."""
    budget = max(len(run.best) for mine in runs.values() for run in mine)
    at = [count for count in AT if count <= budget]
    most = max(len(mine) for mine in runs.values())
    ranked = {
        name: mine for name, mine in runs.items() if len(mine) == most
    }  # fewer seeds would be compared on those alone
    ranks = {f"rank {split}": mean_ranks(ranked, split) for split in ("dev", "test")}
    tests, p = {}, "paired p" if paired else "p"
    if reference in ranked:
        tests = {
            f"{p} {split}": corrected_tests(ranked, reference, split, paired=paired)
            for split in ("dev", "test")
        }
    header = ["method", "seeds", *(f"dev at {count}" for count in at), "test", *ranks, *tests]
    rows = []
    for name in sorted(
        runs,
        key=lambda name: (ranks["rank dev"].get(name, np.inf), -final(runs[name], "dev").mean()),
    ):
        mine = runs[name]
        row = [
            name,
            len(mine),
            *(
                float(np.mean([run.best[min(count, len(run.best)) - 1] for run in mine]))
                for count in at
            ),
        ]
        row += [with_deviation(final(mine, "test"))]
        row += [f"{places[name]:.1f}" if name in places else "" for places in ranks.values()]
        row += [f"{p_values[name]:.1g}" if name in p_values else "" for p_values in tests.values()]
        rows.append(row)
    print_table(header, rows)
    rows = [
        [
            name,
            *(f"{np.mean([run.result[key] for run in mine]):.1f}" for key in KEYS_OF_TIME),
            *(
                ", ".join(sorted({run.result.get(key, "?") for run in mine}))
                for key in ("dtype", "commit")
            ),
        ]
        for name, mine in runs.items()
    ]
    print_table(
        ["method", "evaluations", "seconds", "of these in evaluation", "dtype", "commits"], rows
    )


def print_changes(
    runs: dict[str, list[Run]], names: list[str], reference: str, what: str, *, paired: bool
) -> None:
    """Methods beside the one that they change, each on the seeds that both have, with Welch's tests or paired ones, where both
    have made as many evaluations."""
    shared = {name: on_shared_seeds(runs[reference], runs[name]) for name in names}
    tests = {}
    for split in ("dev", "test"):
        p_values = {}
        for name, (ours, theirs) in shared.items():
            if evaluations(ours) == evaluations(theirs):
                p_values |= corrected_tests(
                    {reference: ours, name: theirs}, reference, split, paired=paired
                )
        tests[split] = holm(p_values)
    rows = [
        [
            name,
            len(theirs),
            evaluations(theirs),
            *(
                f"{final(mine, split).mean():.3f}"
                for split in ("dev", "test")
                for mine in (theirs, ours)
            ),
            *(f"{p_values[name]:.1g}" if name in p_values else "" for p_values in tests.values()),
        ]
        for name, (ours, theirs) in shared.items()
    ]
    p = [f"{'paired ' if paired else ''}p {split}" for split in tests]
    print_table(
        [
            what,
            "seeds",
            "evaluations",
            "dev",
            f"{reference}, dev",
            "test",
            f"{reference}, test",
            *p,
        ],
        rows,
    )


def print_choices(runs: dict[str, list[Run]]) -> None:
    """Test scores of the final choice beside those of the best on dev, of the methods that choose otherwise."""
    from scipy.stats import ttest_rel

    rows, p_values = {}, {}
    for name, mine in runs.items():
        pairs = [(run.result["test"], run.result.get("test of the best on dev")) for run in mine]
        ours, best = np.array([pair for pair in pairs if pair[1] is not None]).reshape(-1, 2).T
        if len(ours) > 1 and (ours != best).any():
            p_values[name] = float(ttest_rel(ours, best).pvalue)
            rows[name] = [name, len(ours), with_deviation(ours), with_deviation(best)]
    if rows:
        p_values = holm(p_values)
        header = ["test, final choice", "seeds", "answer", "best on dev", "paired p"]
        print_table(header, [[*row, f"{p_values[name]:.1g}"] for name, row in rows.items()])


def print_control(runs: dict[str, list[Run]], known: dict[str, float]) -> None:
    """Whether a search gains on test where there is nothing to learn: one-sided t tests with Holm's correction, at 5 %.

    :param known: test scores of merges that need no search; a gain is one over the best of them.
    """
    from scipy.stats import ttest_1samp

    name_of_best = max(known, key=known.get)
    gains = {name: final(mine, "test") - known[name_of_best] for name, mine in runs.items()}
    p_values = {}
    for name, mine in gains.items():
        if len(mine) > 1:
            with warnings.catch_warnings():  # where nothing varies
                warnings.simplefilter("ignore", RuntimeWarning)
                p = float(ttest_1samp(mine, 0, alternative="greater").pvalue)
            p_values[name] = float(not mine.mean() > 0) if np.isnan(p) else p
    p_values = holm(p_values)
    for name, mine in gains.items():
        if name not in p_values:
            print(
                f"\n{name} ran once, which says nothing: {with_deviation(mine)} over {name_of_best}."
            )
            continue
        verdict = "IMPROVES" if p_values[name] < 0.05 else "does not improve"
        print(
            f"\n{name} {verdict} over {name_of_best} on test: {with_deviation(mine)} over {len(mine)} seeds, "
            f"p {p_values[name]:.2g}."
        )


def print_budgets(folders: dict[str, dict[str, list[Run]]], groups: dict[str, str]) -> None:
    """Searches with fewer evaluations beside those with more, where folders differ in nothing else."""
    kinds: dict[str, dict[int, dict[str, list[Run]]]] = defaultdict(dict)
    for folder, runs in folders.items():
        n, budget, *suffixes = folder.split("_")
        kinds["_".join([n, *suffixes])][int(budget)] = of_group(runs, groups, "search")
    for kind, budgets in kinds.items():
        if len(budgets) > 1:
            rows = [
                [
                    name,
                    budget,
                    len(mine),
                    *(with_deviation(final(mine, split)) for split in ("dev", "test")),
                ]
                for budget in sorted(budgets)
                for name, mine in budgets[budget].items()
            ]
            print_table([f"budgets ({kind})", "evaluations", "seeds", "dev", "test"], rows)


def print_by_task(runs: dict[str, list[Run]], static: list[dict]) -> None:
    """Test scores by task and their mean."""
    results = {result["method"]: [result] for result in static}
    results |= {name: [run.result for run in mine] for name, mine in runs.items()}
    tasks = list(next(iter(results.values()))[0]["test by task"])
    rows = [
        [
            name,
            *(float(np.mean([result["test by task"][task] for result in mine])) for task in tasks),
            float(np.mean([result["test"] for result in mine])),
        ]
        for name, mine in results.items()
    ]
    print_table(["method, test", *tasks, "mean"], rows)


def print_counts(
    folders: dict[str, dict[str, list[Run]]], suffix: str
) -> dict[str, dict[int, float]]:
    """Test score by the number of experts, as the paper's table 13.

    :param suffix: of the folders n2_..., n3_... that are of one kind.
    :return: per method, by the number of experts; nothing where no method has three numbers.
    """
    parts = {name: name.partition("_") for name in folders}
    counts = {
        int(parts[name][0][1:]): runs for name, runs in folders.items() if parts[name][2] == suffix
    }
    names = sorted({name for runs in counts.values() for name in runs})
    names = [name for name in names if sum(name in runs for runs in counts.values()) > 2]
    if not names:
        return {}
    results = [
        run.result["test by task"]
        for runs in counts.values()
        for mine in runs.values()
        for run in mine
    ]
    tasks = [
        task for task in results[0] if all(task in result for result in results)
    ]  # those that all numbers have
    cells = {
        name: {
            n: float(
                np.mean(
                    [run.result["test by task"][task] for run in counts[n][name] for task in tasks]
                )
            )
            for n in sorted(counts)
            if name in counts[n]
        }
        for name in names
    }
    print_table(
        [f"experts, test on {len(tasks)} tasks ({suffix})", *map(str, sorted(counts))],
        [[k, *(v.get(n, "") for n in sorted(counts))] for k, v in cells.items()],
    )
    return cells


def read_static(folder: Path) -> list[dict]:
    """What `static_merges.py` wrote, the best on dev first."""
    results = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(results, key=lambda result: -result["dev"])


def print_static(folder: Path) -> None:
    """Merges chosen on dev from a grid of so many evaluations."""
    rows = [
        [
            result["method"],
            result["setting"],
            result["evaluations"],
            result["dev"],
            result["test"],
            f"{result['seconds']:.0f}",
        ]
        for result in read_static(folder)
    ]
    print_table(["static merge", "chosen", "evaluations", "dev", "test", "seconds"], rows)


def print_folder(
    runs: dict[str, list[Run]],
    static: list[dict],
    groups: dict[str, str],
    *,
    control: str,
    own: bool,
) -> None:
    """All tables of the cases of one setting.

    :param runs: by method.
    :param static: results of static merges on the same questions.
    :param groups: of the methods: `"search"` or one of `CHANGED`.
    :param control: `"random"` adapters, `"shuffled"` answers, or `""`.
    :param own: whether every seed has its own questions.
    """
    searches = of_group(runs, groups, "search")
    if searches:
        print_summary(searches, "EvoGM", paired=own)
        if ON_SCORES in runs:
            others = {name: mine for name, mine in searches.items() if name != "EvoGM"}
            print("\nWith the same information for all, scores alone:")
            print_summary({ON_SCORES: runs[ON_SCORES], **others}, ON_SCORES, paired=own)
        print_by_task(searches, [] if control else static)
    # The average of random adapters is another one than that of the experts.
    needed = {"random": ["base"], "shuffled": ["base", "Model Soup"]}.get(control, [])
    known = {result["method"]: result["test"] for result in static if result["method"] in needed}
    if control and own:
        print("\nWhether a control improves is not known: the base was scored on other questions.")
    elif control and len(known) == len(needed):
        print_control(searches, known)
    elif control:
        print(
            f"\nWhether a control improves is not known: run static_merges.py --methods {' '.join(map(repr, needed))}."
        )
    print_choices(runs)
    for group, (reference, what) in CHANGED.items():
        names = list(of_group(runs, groups, group))
        if names and reference in runs:
            print_changes(runs, names, reference, what, paired=own)
        elif names:
            print(f"\n{', '.join(names)}: not compared, as {reference} has not run here.")


def report(folder: Path, groups: dict[str, str]) -> None:
    """Print the tables of a level, and write its plots; groups as in `print_folder`."""
    from compare_plots import plot_bars, plot_counts, plot_curves

    paths = [path for path in sorted(folder.glob("n*_*")) if path.is_dir()]
    folders = {path.name: read_runs(path) for path in paths if not path.name.endswith("_static")}
    folders = {name: runs for name, runs in folders.items() if runs}
    if not folders:
        raise SystemExit(f"{folder}: expected the files of compare.py run, found none")
    plots = folder / "report"
    plots.mkdir(exist_ok=True)
    for name, runs in folders.items():
        print(f"\n## {name}")
        n, _, *suffixes = name.split("_")
        control, own = (
            next((part for part in suffixes if part in ("random", "shuffled")), ""),
            "own" in suffixes,
        )
        static = [] if own else read_static(folder / f"{n}_static")
        print_folder(runs, static, groups, control=control, own=own)
        for group in ("search", *CHANGED):
            mine = of_group(runs, groups, group)
            if mine:
                reference = CHANGED.get(group, ("",))[0]
                mine |= {reference: runs[reference]} if reference in runs else {}
                plot_curves(mine, plots / f"{name}_{group}.png", f"{name}, {group}")
                plot_bars(mine, plots / f"{name}_{group}_final.png")
    for path in paths:
        if path.name.endswith("_static"):
            print(f"\n## {path.name}")
            print_static(path)
    print_budgets(folders, groups)
    for suffix in sorted({name.partition("_")[2] for name in folders}):
        if cells := print_counts(folders, suffix):
            plot_counts(cells, plots / f"expert_counts_{suffix}.png")
