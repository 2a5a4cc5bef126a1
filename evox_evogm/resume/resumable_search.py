"""A search that goes on after the end of its process, as if it had not been interrupted.

Every evaluation is written to a journal before it counts, and the state of the workflow after every step. A later process
reads both, repeats the step that was cut off from the state before it, and takes the evaluations of that step that are in
the journal.
"""

import hashlib
import json
import math
import pickle
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from evox.core import Problem

from evox_evogm.resume.atomic_write import atomic_write
from evox_evogm.resume.journal import Journal

JOURNAL, STATE = "history.jsonl", "state.safetensors"
FORMAT = 2  # of the state file
RANDOM = "random state"  # of the CPU's generator; of a GPU's with its name behind


class ResumableSearch:
    """Runs an EvoX workflow step by step, on disk.

        search = ResumableSearch(workflow, "runs/mine")
        search.run(8)  # in a later process, with the workflow made and seeded as before, this goes on
        search.close()

    A problem with `on_evaluations` and `recall`, as `LoRAMergeProblem` has them, is written down by the candidates that it
    evaluates together, with their scores by task and example; any other, a `DistributedProblem` too, by populations, with
    the fitness alone. Monitors get back the tensors of their state; their lists (histories) begin with the process. Under
    `torchrun` rank 0 writes, and the others hear what it has read.

    The search goes on bit for bit if evaluating draws no random numbers and keeps no state. Of other problems a population
    that was written down just before the end is not evaluated again, so that what follows draws other numbers. Evaluations
    that failed and that no saved state counts are made again. An algorithm must keep its state in tensors (`Mutable`).
    """

    def __init__(
        self,
        workflow,
        folder,
        *,
        describe: Callable[[int], Mapping] = lambda step: {},
        journal: Journal | None = None,
    ):
        """Take over a workflow before its first step.

        :param workflow: a `StdWorkflow`; its problem is wrapped.
        :param folder: where `history.jsonl` and `state.safetensors` are; made if it is missing.
        :param describe: what else to write down with the evaluations of a step, by its number from 0.
        :param journal: the folder's `history.jsonl`, if it is open already.
        :raises ValueError: if another process has the folder, or if its files are damaged or do not fit the workflow; if the
            workflow has been stepped, as far as its algorithm counts `steps`.
        """
        if int(getattr(workflow.algorithm, "steps", 0)) > 0:
            raise ValueError(
                f"workflow: expected one that has not been stepped, found {int(workflow.algorithm.steps)} steps"
            )
        self.workflow, self.folder = workflow, Path(folder)
        self.steps = 0
        self.journal = journal
        self.made = fingerprint(workflow)
        if _rank() == 0 and journal is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.journal = Journal(self.folder / JOURNAL)
        self.problem = JournaledProblem(workflow.problem, self.journal, describe)
        self.workflow.problem = self.problem
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    @property
    def records(self) -> list[dict]:
        """What the journal holds (rank 0)."""
        return self.journal.records

    def run(self, steps: int) -> None:
        """Go on until the workflow has made so many steps, `init_step` among them."""
        while self.steps < steps:
            self.problem.step = self.steps
            before = outside_the_state(self.workflow.algorithm)
            if self.steps == 0:
                self.workflow.init_step()
            else:
                self.workflow.step()
            changed = differing(before, outside_the_state(self.workflow.algorithm))
            if changed is not None:
                raise ValueError(
                    f"algorithm: expected one that keeps its state in tensors (Mutable), found that a step changes {changed}; "
                    "a later process could not go on with it"
                )
            self.steps += 1
            self._save()

    def close(self) -> None:
        """Let another process, or another object, have the folder."""
        if self.journal is not None:
            self.journal.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _device(self) -> torch.device:
        return next(iter(self.workflow.state_dict().values()), torch.empty(0)).device

    def _save(self) -> None:
        """Write the state whole or not at all."""
        if self.journal is None:
            return
        from safetensors.torch import save

        # Cloned, because safetensors takes no tensors that share memory or have gaps.
        copy = {"memory_format": torch.contiguous_format}
        tensors = {
            name: value.detach().cpu().clone(**copy)
            for name, value in self.workflow.state_dict().items()
        }
        tensors[RANDOM] = torch.get_rng_state()
        if self._device().type == "cuda":
            tensors[f"{RANDOM} cuda"] = torch.cuda.get_rng_state(self._device())
        metadata = {
            "format": str(FORMAT),
            "steps": str(self.steps),
            "evaluations": str(self.problem.position),
        }
        metadata["made"] = json.dumps(self.made)
        atomic_write(self.folder / STATE, save(tensors, metadata=metadata))

    def _load(self) -> None:
        """Put the workflow where the last whole step left it."""
        found = [self._read() if _rank() == 0 else None]
        if _ranks() > 1:
            dist.broadcast_object_list(found, src=0)
        if found[0] is not None:
            tensors, self.steps, self.problem.position = found[0]
        if self.journal is not None:
            self.problem.load_history()
        if found[0] is None:
            return
        device = self._device()
        torch.set_rng_state(tensors.pop(RANDOM))
        if (cuda := tensors.pop(f"{RANDOM} cuda", None)) is not None and device.type == "cuda":
            torch.cuda.set_rng_state(cuda, device)
        for name, value in tensors.items():
            owner, _, leaf = name.rpartition(".")
            module = self.workflow.get_submodule(owner)
            if leaf in module._parameters:
                module._parameters[leaf].data = value.to(device)
            else:  # assigned, not copied: some monitors change the shapes of their tensors
                module._buffers[leaf] = value.to(device)

    def _read(self) -> tuple[dict[str, torch.Tensor], int, int] | None:
        """The tensors of the last whole step, the number of steps, and of evaluations made until then."""
        from safetensors import SafetensorError, safe_open

        path = self.folder / STATE
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                metadata, tensors = (
                    file.metadata() or {},
                    {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
                )
        except SafetensorError as error:
            raise ValueError(f"{path}: expected a state in safetensors, found {error}") from error
        if metadata.get("format") != str(FORMAT):
            found = metadata.get("format")
            raise ValueError(
                f"{path}: expected format {FORMAT}, found {found}, which another version of evox-evogm wrote"
            )
        changed = differing(json.loads(metadata.get("made", "{}")), self.made)
        if changed is not None:
            raise ValueError(
                f"{path}: expected the state of this workflow, found one that was made or seeded with another {changed}"
            )
        evaluations = int(metadata["evaluations"])
        if evaluations > len(self.journal.records):
            found = len(self.journal.records)
            raise ValueError(
                f"{self.journal.path}: expected the {evaluations} evaluations of the state, found {found}"
            )
        return tensors, int(metadata["steps"]), evaluations


class JournaledProblem(Problem):
    """A problem whose evaluations are written to a journal, or taken from it where it has them."""

    def __init__(
        self, problem: Problem, journal: Journal | None, describe: Callable[[int], Mapping]
    ):
        super().__init__()
        self.problem = problem
        self.journal = journal
        self.describe = describe
        self.step = 0
        self.position = 0  # how many evaluations of the journal have been made or repeated
        self.by_candidates = hasattr(problem, "load_history")
        if self.by_candidates:
            self.listener, problem.on_evaluations = problem.on_evaluations, self._note_candidates

    def load_history(self) -> None:
        """Tell a problem that evaluates by candidates what is known.

        Failures that no state counts are forgotten, with what was written after them: it will be written again.
        """
        if not self.by_candidates:
            return
        records = self.journal.records
        self.problem.load_history(records)
        failed = (
            number
            for number in range(self.position, len(records))
            if records[number].get("failure")
        )
        self.journal.cut(next(failed, len(records)))

    @torch.compiler.disable
    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        """Evaluate a population, or find it in the journal.

        :raises ValueError: if the journal has other points at this place: the search does not repeat itself.
        """
        if self.by_candidates:
            return self.problem.evaluate(pop)
        known = [self._known(pop) if _rank() == 0 else None]
        if _ranks() > 1:
            dist.broadcast_object_list(known, src=0)
        if known[0] is not None:
            self.position += len(pop)
            return torch.tensor(numbers(known[0]), dtype=pop.dtype, device=pop.device)
        start = time.perf_counter()
        fitness = self.problem.evaluate(pop)
        seconds = (time.perf_counter() - start) / len(pop)
        if self.journal is not None:
            rows = zip(pop.detach().tolist(), fitness.tolist(), strict=True)
            self._append(
                [
                    {"coefficients": point, "fitness": value, "seconds": seconds}
                    for point, value in rows
                ]
            )
        self.position += len(pop)
        return fitness

    def _known(self, pop: torch.Tensor) -> list | None:
        found = self.journal.records[self.position : self.position + len(pop)]
        if not found:
            return None
        self._check([record["coefficients"] for record in found], pop.detach().tolist())
        return [record["fitness"] for record in found]

    def _note_candidates(self, evaluations: list) -> None:
        found = self.journal.records[self.position : self.position + len(evaluations)]
        if found:
            self._check(
                [record["coefficients"] for record in found],
                [list(e.coefficients) for e in evaluations],
            )
        else:
            self._append([evaluation.as_record() for evaluation in evaluations])
        self.position += len(evaluations)
        if self.listener is not None:
            self.listener(evaluations)

    def _append(self, rows: list[dict]) -> None:
        numbered = enumerate(rows, self.position)
        self.journal.append(
            [
                {"evaluation": number, "step": self.step, **self.describe(self.step), **plain(row)}
                for number, row in numbered
            ]
        )

    def _check(self, written: list, repeated: list) -> None:
        if written != plain(repeated):
            raise ValueError(
                f"{self.journal.path}: expected to repeat evaluation {self.position} of step {self.step}, found other points; "
                "this search was made or seeded differently, or in another environment"
            )


def fingerprint(workflow) -> dict[str, str]:
    """What a workflow was made with, as digests by name: its tensors, the settings of its algorithm, the random state."""
    made = {name: _digest(value) for name, value in workflow.state_dict().items()}
    for name, value in _own(workflow.algorithm).items():
        # Of other things `repr` may tell the address, which differs between processes.
        if all(
            isinstance(v, (bool, int, float, str))
            for v in (value if isinstance(value, (list, tuple)) else [value])
        ):
            made[f"algorithm.{name}"] = _digest(repr(value).encode())
    return {**made, RANDOM: _digest(torch.get_rng_state())}


def outside_the_state(algorithm: torch.nn.Module) -> dict[str, str]:
    """Digests of whatever an algorithm keeps beside its parameters and buffers, by name."""
    found = {}
    for path, module in algorithm.named_modules():
        for name, value in _own(module).items():
            try:
                content = value if isinstance(value, torch.Tensor) else pickle.dumps(value)
            except Exception:  # functions and the like, which hold no state of a search
                continue
            found[f"{path}.{name}".lstrip(".")] = _digest(content)
    return found


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> str | None:
    """The first name under which two tables differ."""
    return next(
        (repr(n) for n in sorted(one.keys() | other.keys()) if one.get(n) != other.get(n)), None
    )


def _own(module: torch.nn.Module) -> dict:
    """The attributes of a module that torch does not keep for it."""
    return {
        name: value for name, value in vars(module).items() if name not in vars(torch.nn.Module())
    }


def _digest(content: torch.Tensor | bytes) -> str:
    digest = hashlib.sha256()
    if isinstance(content, torch.Tensor):
        digest.update(f"{content.dtype}{tuple(content.shape)}".encode())
        content = content.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    digest.update(content)
    return digest.hexdigest()[:16]


def plain(value):
    """The same for JSON, in which a number that is not finite has to be its name: nan, inf or -inf."""
    if isinstance(value, Mapping):
        return {name: plain(element) for name, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(element) for element in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def numbers(value):
    """The numbers that `plain` was given."""
    return [numbers(element) for element in value] if isinstance(value, list) else float(value)


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
