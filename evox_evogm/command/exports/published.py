"""Read what the published code of EvoGM found (github.com/JiangTao97/evogm).

A run of it leaves in its `search_process` folder

- `best_solution.json`: `final_coefficients`, a number by expert, over the original experts, beside
  `initial_coefficients` (the best point of the first population) and scores;
- `best_solutions.json`: the same under `final` and `coefficients`;
- `run_context.json`: the names of the experts and the settings.
"""

import json
import math
from pathlib import Path

import torch

from evox_evogm.problems.lora_merge import LoRAMergeProblem

FILES = ("best_solution.json", "best_solutions.json")
CONTEXT = "run_context.json"


def read_published(path, problem: LoRAMergeProblem) -> torch.Tensor:
    """The coefficients of a result of the published code, for the experts of a problem.

    :param path: `best_solution.json`, `best_solutions.json`, or the folder that holds one.
    :param problem: whose experts have the names in the file, in any order. An expert that the file
        does not name is refused, since the search did not know it.
    :return: `(n g,)` effective coefficients.
    :raises ValueError: in one sentence, if the file is none of these, names other experts, or
        cannot be trusted.
    """
    file = find_file(Path(path))
    coefficients = read_coefficients_by_name(file)
    check_rounds(file, len(coefficients))
    if problem.regressed:
        raise ValueError(
            "regmean: expected experts as they are, found regressed ones, which the published "
            "code does not know; load the problem without regmean"
        )
    wanted = [expert.name for expert in problem.experts]
    if set(wanted) != set(coefficients):
        missing = sorted(set(wanted) - set(coefficients))
        unknown = sorted(set(coefficients) - set(wanted))
        parts = []
        if missing:
            parts.append(f"no coefficient of {', '.join(missing)}")
        if unknown:
            parts.append(f"coefficients of {', '.join(unknown)}, which are no experts here")
        raise ValueError(
            f"{file}: expected a coefficient of every expert, found {' and '.join(parts)}; "
            "name the experts as the published run did"
        )
    values = torch.tensor([coefficients[name] for name in wanted], dtype=torch.float32)
    return problem.groups.expand(values)


def find_file(path: Path) -> Path:
    """The result file of a path, in a folder the only one there.

    :raises ValueError: if there is none, or there are several.
    """
    if path.is_file():
        return path
    for name in FILES:
        found = sorted(path.rglob(name)) if path.is_dir() else []
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"from: expected one {name} in {path}, found {len(found)}; name the file"
            )
    raise ValueError(f"from: expected {FILES[0]} of the published EvoGM, found none at {path}")


def read_coefficients_by_name(file: Path) -> dict[str, float]:
    """The coefficient of every expert in a result file.

    :raises ValueError: if the file holds none.
    """
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected JSON, found {error}") from error
    found = None
    if isinstance(table, dict):
        final = table.get("final")
        found = table.get("final_coefficients")
        if found is None and isinstance(final, dict):
            found = final.get("coefficients")
    if not isinstance(found, dict) or not found:
        raise ValueError(
            f"{file}: expected final_coefficients, a table of experts and numbers, as the "
            "published EvoGM writes it, found none"
        )
    for name, value in found.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            raise ValueError(f"{file}: expected a finite number for {name!r}, found {value!r}")
    return {name: float(value) for name, value in found.items()}


def check_rounds(file: Path, experts: int) -> None:
    """Refuse a run whose coefficients are not over the original experts.

    With `top_k` other than the number of experts, and more than one round, the published code makes
    new experts and does not write down of what.

    :param experts: n.
    :raises ValueError: if `run_context.json` beside the file says so.
    """
    context = file.with_name(CONTEXT)
    if not context.is_file():
        return
    try:
        settings = json.loads(context.read_text(encoding="utf-8"))
        top_k, rounds = settings.get("top_k"), settings.get("n_rounds")
    except (ValueError, AttributeError):
        return
    if isinstance(top_k, int) and isinstance(rounds, int) and rounds > 1 and top_k != experts:
        raise ValueError(
            f"{context}: expected top_k {experts}, the number of experts, found {top_k}: the "
            "coefficients of later rounds are then over experts that were not kept"
        )
