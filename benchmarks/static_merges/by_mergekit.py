"""Static merges of mergekit (`pip install mergekit`, C. Goddard et al. 2024, arXiv 2403.13257).

- TIES: P. Yadav et al. 2023, arXiv 2306.01708.
- DARE: L. Yu et al. 2024, arXiv 2311.03099, with TIES's signs or without.
- DELLA: P. Deep et al. 2024, arXiv 2406.11617.

mergekit may live in an environment of its own.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from benchmarks.static_merges.dense import mean_scores
from benchmarks.static_merges.settings import LoadedSuite, Setting
from evox_evogm.problems import LoRAMergeProblem
from evox_evogm.problems.inference.language_model import LanguageModel

DENSITIES = (0.2, 0.5)
# Of methods that divide by the weights of the experts that agree, where a common weight would
# cancel out.
LAMBDAS = (0.1, 0.2, 0.3, 0.5, 1.0)
# mergekit's name, and whether it divides so by default: TIES's disjoint mean, and DELLA's after it.
MERGEKIT = {
    "TIES": ("ties", True),
    "DARE": ("dare_linear", False),
    "DARE-TIES": ("dare_ties", False),
    "DELLA": ("della", True),
}


def by_mergekit(
    suite: LoadedSuite, command: str, method: str, normalize: bool
) -> Iterator[Setting]:
    """Densities x weights or lambdas. DARE and DELLA draw once.

    The first merge of a method draws other numbers than the later ones, with the same seed:
    mergekit then also merges the adapters into models, for which peft draws too. The same grid
    gives the same merges again.

    :param suite: what is merged and scored.
    :param command: mergekit-yaml.
    :param method: by mergekit's name.
    :param normalize: whether to divide by the weights of the experts that agree.
    """
    language_model = suite.problem.language_model
    work = Path(tempfile.mkdtemp(prefix="mergekit_"))
    language_model.model.save_pretrained(work / "base")
    language_model.tokenizer.save_pretrained(work / "base")
    scales = LAMBDAS if normalize else (1 / suite.n, 0.3, 1.0)
    what = "lambda" if normalize else "weight"
    try:
        for density in DENSITIES:
            for scale in scales:
                plan = make_plan(suite.problem, work / "base", method, density, scale, normalize)
                model = run_mergekit(command, plan, work, language_model)
                name = f"density {density}, {what} {scale:.2g}"
                yield Setting(name, lambda tasks, model=model: mean_scores(model, tasks))
                shutil.rmtree(work / "merge")
    finally:
        shutil.rmtree(work)


def dtype_name(language_model: LanguageModel) -> str:
    return str(language_model.model.dtype).removeprefix("torch.")


def make_plan(
    problem: LoRAMergeProblem,
    base: Path,
    method: str,
    density: float,
    scale: float,
    normalize: bool,
) -> dict:
    """What mergekit reads.

    :param scale: lambda if `normalize`, else the weight of every expert.
    """
    weight, factor = (1.0, scale) if normalize else (scale, 1.0)
    models = []
    for expert in problem.experts:
        parameters = {"weight": weight, "density": density}
        models.append({"model": f"{base}+{expert.folder}", "parameters": parameters})
    return {
        "merge_method": method,
        "base_model": str(base),
        "models": models,
        "dtype": dtype_name(problem.language_model),
        "parameters": {"normalize": normalize, "lambda": factor},
    }


def run_mergekit(
    command: str, plan: dict, work: Path, language_model: LanguageModel
) -> LanguageModel:
    """Merge into the folder `merge`, and load what mergekit wrote.

    :raises RuntimeError: if mergekit fails.
    """
    from transformers import AutoModelForCausalLM

    (work / "plan.yaml").write_text(yaml.safe_dump(plan))
    merge = [command, work / "plan.yaml", work / "merge", "--random-seed", "0", "--quiet"]
    merge += ["--lora-merge-cache", work / "loras"]
    merge += ["--lora-merge-dtype", dtype_name(language_model)]
    done = subprocess.run(merge, capture_output=True, text=True)
    if done.returncode:
        message = done.stderr.strip()[-500:]
        raise RuntimeError(f"mergekit ended with status {done.returncode}: {message}")
    dtype = language_model.model.dtype
    merged = AutoModelForCausalLM.from_pretrained(work / "merge", dtype=dtype)
    return LanguageModel(merged.eval(), language_model.tokenizer)
