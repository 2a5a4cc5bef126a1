"""A search that goes on after the end of its process, as if it had not been interrupted.

Every evaluation is written to a journal before it counts, and the state of the workflow after
every step. A later process reads both. It repeats the step that was cut off, from the state before
it, and takes the evaluations of that step that are in the journal.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from evox.workflows import StdWorkflow

from evox_evogm.resume.atomic_write import atomic_write
from evox_evogm.resume.fingerprint import RANDOM, differing, fingerprint, outside_the_state
from evox_evogm.resume.journal import Journal
from evox_evogm.resume.journaled_problem import JournaledProblem
from evox_evogm.resume.ranks import is_rank_0, read_on_rank_0

JOURNAL, STATE = "history.jsonl", "state.safetensors"
FORMAT = 2  # of the state file
RANDOM_CUDA = f"{RANDOM} cuda"  # of the GPU's generator


class SavedState(NamedTuple):
    """What a state file holds."""

    tensors: dict[str, torch.Tensor]
    """By name in the workflow, and the random states."""
    steps: int
    """How many steps were made."""
    evaluations: int
    """How many evaluations were made until then."""
    made: dict[str, str]
    """The fingerprint of the workflow before its first step."""
    seconds: float = 0.0
    """That the steps took, in all processes."""


class ResumableSearch:
    """Runs an EvoX workflow step by step, on disk.

        search = ResumableSearch(workflow, "runs/mine")
        search.run(8)  # goes on in a later process, with the workflow made and seeded as before
        search.close()

    - **Journal**: `LoRAMergeProblem`, and any problem with `on_evaluations` and `load_history`, is
      written down by the candidates that it evaluates together, with scores by task and example.
      So is a `DistributedProblem` of merges. Other problems are written down by populations, with
      the fitness.
    - **Monitors** get back the tensors of their state. Their lists (histories) begin anew.
    - **Ranks**: under `torchrun` rank 0 reads and writes, and the others receive what it has read.
    - **Algorithms** must keep their state in tensors (`Mutable`).
    - **Failures** that no saved state counts are evaluated again.
    - **More steps** may follow in a later process. What was evaluated outside of steps, such as the
      point that an algorithm recommends in the end, is marked in the journal and passed over.

    The search goes on bit for bit if evaluating draws no random numbers and keeps no state. With
    other problems a population that was written down just before the end is not evaluated again,
    so that what follows draws other numbers.
    """

    def __init__(
        self,
        workflow: StdWorkflow,
        folder: str | os.PathLike,
        *,
        describe: Callable[[int], Mapping] = lambda step: {},
        journal: Journal | None = None,
    ):
        """Take over a workflow before its first step.

        :param workflow: a `StdWorkflow`; its problem is wrapped.
        :param folder: where `history.jsonl` and `state.safetensors` are; made if it is missing.
        :param describe: what else to write down with the evaluations of a step, by its number from
            0.
        :param journal: the folder's `history.jsonl`, if it is open already.
        :raises ValueError: if another process has the folder; if its files are damaged or do not
            fit the workflow; if the workflow has been stepped, as far as its algorithm counts
            `steps`.
        """
        stepped = int(getattr(workflow.algorithm, "steps", 0))
        if stepped > 0:
            raise ValueError(
                f"workflow: expected one that has not been stepped, found {stepped} steps"
            )
        self.workflow, self.folder = workflow, Path(folder)
        self.steps = 0
        self.seconds = 0.0  # that the steps took, in all processes
        self.made = fingerprint(workflow)
        self.journal = journal
        if is_rank_0() and journal is None:
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
        assert self.journal is not None
        return self.journal.records

    def run(self, steps: int) -> None:
        """Go on until the workflow has made so many steps, `init_step` among them.

        :raises ValueError: if the search does not repeat itself, or if its algorithm keeps state
            outside its tensors.
        """
        algorithm = self.workflow.algorithm
        while self.steps < steps:
            start = time.monotonic()
            before = outside_the_state(algorithm)
            with self.problem.in_step(self.steps):
                if self.steps == 0:
                    self.workflow.init_step()
                else:
                    self.workflow.step()
            changed = differing(before, outside_the_state(algorithm))
            if changed is not None:
                raise ValueError(
                    "algorithm: expected one that keeps its state in tensors (Mutable), found that "
                    f"a step changes {changed}; a later process could not go on with it"
                )
            self.steps += 1
            self.seconds += time.monotonic() - start
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
        """Where the workflow keeps its state."""
        return next(iter(self.workflow.state_dict().values()), torch.empty(0)).device

    def _save(self) -> None:
        """Write the state whole or not at all (rank 0)."""
        if self.journal is None:
            return
        tensors = dict(self.workflow.state_dict())
        tensors[RANDOM] = torch.get_rng_state()
        if self._device().type == "cuda":
            tensors[RANDOM_CUDA] = torch.cuda.get_rng_state(self._device())
        state = SavedState(tensors, self.steps, self.problem.position, self.made, self.seconds)
        write_state(self.folder / STATE, state)

    def _load(self) -> None:
        """Bring the workflow to where the last whole step left it."""
        state = read_on_rank_0(self._read)
        if state is not None:
            self.steps, self.problem.position = state.steps, state.evaluations
            self.seconds = state.seconds
            self.problem.step = max(0, state.steps - 1)  # of what is evaluated between two steps
        self.problem.load_history()
        if state is not None:
            load_tensors(self.workflow, state.tensors, self._device())

    def _read(self) -> SavedState | None:
        """The state of the last whole step, or None if there is none.

        :raises ValueError: if it does not fit the workflow and the journal.
        """
        assert self.journal is not None
        path = self.folder / STATE
        state = read_state(path) if path.exists() else None
        if state is None:
            return None
        changed = differing(state.made, self.made)
        if changed is not None:
            raise ValueError(
                f"{path}: expected the state of this workflow, "
                f"found one that was made or seeded with another {changed}"
            )
        found = len(self.journal.records)
        if state.evaluations > found:
            expected = f"expected the {state.evaluations} evaluations of the state"
            raise ValueError(f"{self.journal.path}: {expected}, found {found}")
        return state


def write_state(path: Path, state: SavedState) -> None:
    """Write a state file whole or not at all.

    :raises OSError: if it cannot be written; the file is then as before.
    """
    from safetensors.torch import save

    tensors = {}
    for name, value in state.tensors.items():
        # Cloned, because safetensors takes no tensors that share memory or have gaps.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    metadata = {
        "format": str(FORMAT),
        "steps": str(state.steps),
        "evaluations": str(state.evaluations),
        "made": json.dumps(state.made),
        "seconds": f"{state.seconds:.3f}",
    }
    atomic_write(path, save(tensors, metadata=metadata))


def read_state(path: Path) -> SavedState:
    """Read a state file.

    :raises ValueError: if it is damaged, or if another version wrote it.
    """
    from safetensors import SafetensorError, safe_open

    tensors = {}
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            for name in file.keys():  # noqa: SIM118  not a table
                tensors[name] = file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a state in safetensors, found {error}") from error
    found = metadata.get("format")
    if found != str(FORMAT):
        raise ValueError(
            f"{path}: expected format {FORMAT}, found {found}, "
            "which another version of evox-evogm wrote"
        )
    made = json.loads(metadata.get("made", "{}"))
    steps, evaluations = int(metadata["steps"]), int(metadata["evaluations"])
    # Earlier versions did not write the seconds.
    return SavedState(tensors, steps, evaluations, made, float(metadata.get("seconds", 0.0)))


def saved_seconds(folder: Path) -> float:
    """The seconds that the steps of a search took until now; 0 where there is no state.

    :raises ValueError: if the state is damaged.
    """
    path = folder / STATE
    return read_state(path).seconds if path.exists() else 0.0


def load_tensors(
    workflow: torch.nn.Module, tensors: Mapping[str, torch.Tensor], device: torch.device
) -> None:
    """Bring a workflow's tensors, and the random state, to those of a state file.

    :param device: where the workflow keeps its tensors.
    """
    for name, value in tensors.items():
        if name == RANDOM:
            torch.set_rng_state(value)
            continue
        if name == RANDOM_CUDA:
            if device.type == "cuda":
                torch.cuda.set_rng_state(value, device)
            continue
        owner, _, leaf = name.rpartition(".")
        module = workflow.get_submodule(owner)
        parameter = module._parameters.get(leaf)
        if parameter is not None:
            parameter.data = value.to(device)
        else:  # assigned, not copied: some monitors change the shapes of their tensors
            module._buffers[leaf] = value.to(device)
