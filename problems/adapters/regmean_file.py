"""Regressed experts in a file, so that a process that goes on with a run need not regress again."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from evox_evogm.problems.adapters.read_adapter import Expert
from evox_evogm.problems.adapters.regmean import with_modules
from evox_evogm.problems.adapters.regmean_unlabelled import regress
from evox_evogm.problems.inference.base_model import weights_sha256
from evox_evogm.problems.inference.scored_model import ScoredModel
from evox_evogm.problems.tasks.requests import cases_or_all, prompts_of, requests_of
from evox_evogm.problems.tasks.task import Task
from evox_evogm.resume.atomic_write import atomic_write

log = logging.getLogger(__name__)

FORM = "1"  # to be raised when the regression gives other factors
DIGEST = "inputs_sha256"


def regress_once(
    path: Path | None,
    model: ScoredModel,
    experts: Sequence[Expert],
    regmean: Mapping[str, Sequence[Task]] | str,
    tasks: Sequence[Task],
) -> list[Expert]:
    """What `regress` returns, from a file if it holds that of the same inputs.

    :param path: the file, if any. It is written where it is missing, damaged, or of other inputs.
        Not used with `"weights"`, which takes no forward pass.
    :param model: the base, as `regress` takes it, like all that follows.
    :raises ValueError: if experts cannot be regressed so, in one sentence.
    :raises OSError: if the file cannot be written.
    """
    if path is None or regmean == "weights":
        return regress(model, experts, regmean, tasks)
    digest = inputs_sha256(model, experts, regmean, tasks)
    kept = read_factors(path, digest)
    if kept is None:
        regressed = regress(model, experts, regmean, tasks)
        write_factors(path, digest, regressed)
        return regressed
    log.info("regmean: the regressed experts are those of %s", path)
    modules = []
    for index, expert in enumerate(experts):
        own = {}
        for name, factors in expert.modules.items():
            own[name] = replace(factors, a=kept[f"{index} {name}"])
        modules.append(own)
    return with_modules(experts, modules)


def inputs_sha256(
    model: ScoredModel,
    experts: Sequence[Expert],
    regmean: Mapping[str, Sequence[Task]] | str,
    tasks: Sequence[Task],
) -> str:
    """SHA-256 of all that the regressed experts depend on: base, experts, texts, precision."""
    digest = hashlib.sha256(f"{FORM} {model.model.dtype} {weights_sha256(model.model)}".encode())
    for expert in experts:
        for name, factors in sorted(expert.modules.items()):
            digest.update(f"{expert.name} {name} {factors.scale}".encode())
            for tensor in (factors.a, factors.b):
                digest.update(f"{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    if isinstance(regmean, str):
        for task in tasks:
            digest.update(repr(prompts_of(task, model, cases_or_all(task, None))).encode())
    else:
        for name, own_tasks in regmean.items():
            texts = [requests_of(task, model) for task in own_tasks]
            digest.update(repr((name, texts)).encode())
    return digest.hexdigest()


def read_factors(path: Path, digest: str) -> dict[str, torch.Tensor] | None:
    """The factors A of a file, by `NUMBER MODULE`; None if it is not of these inputs."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get(DIGEST) != digest:
                return None
            factors = {}
            for name in file.keys():  # noqa: SIM118  safe_open is no mapping
                factors[name] = file.get_tensor(name)
            return factors
    except SafetensorError:
        log.warning("%s: expected regressed experts, found the file damaged; made again", path)
        return None


def write_factors(path: Path, digest: str, regressed: Sequence[Expert]) -> None:
    """Keep the factors A of regressed experts."""
    factors = {}
    for index, expert in enumerate(regressed):
        for name, own in expert.modules.items():
            factors[f"{index} {name}"] = own.a.contiguous()
    atomic_write(path, save(factors, metadata={DIGEST: digest}))
