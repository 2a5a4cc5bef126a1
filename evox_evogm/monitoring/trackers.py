"""Trackers: tensorboard, wandb, trackio and mlflow are told every evaluation.

Each is imported when it is used. All get the same numbers, see `numbers_of`.
"""

import math
import re
import secrets
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.monitoring.expert_means import means_by_expert
from evox_evogm.monitoring.progress import Progress

PROJECT = "evogm"  # of a tracker that has projects
Numbers = dict[str, float]


class Tracker:
    """Tells a service or a file of every evaluation; a context, and called with a `Progress`.

    :param name: of the run.
    :param folder: of the run; trackers that write files put them there.
    :param settings: of the run, as a table, for those that show them.
    :param project: that the run belongs to, where a tracker has projects.
    :param experts: the names of the coefficients, if they are to be tracked.
    :param groups: g; an expert has so many coefficients, whose mean is tracked.
    :param used: for each coefficient whether it weighs anything, and counts in a mean.
    :raises ModuleNotFoundError: if the package is missing, with the command that installs it.
    """

    package = ""  # that has to be installed
    module = ""  # that is imported

    def __init__(
        self,
        name: str = "evogm",
        folder: str | Path = ".",
        settings: Mapping[str, Any] | None = None,
        *,
        project: str = PROJECT,
        experts: Sequence[str] = (),
        groups: int = 1,
        used: Sequence[bool] = (),
    ):
        self.name, self.project = name, project
        self.folder = Path(folder)
        self.settings = flat(settings or {})
        self.experts, self.groups, self.used = list(experts), groups, used
        self.evaluations = 0  # in the history, of earlier processes too
        self.api = self._import()

    def _import(self) -> Any:
        try:
            return import_module(self.module)
        except ImportError as error:
            raise ModuleNotFoundError(
                f"trackers: expected the package {self.package}, found none: "
                f"pip install {self.package}"
            ) from error

    def start(self) -> None:
        """Begin, or go on with, the run."""

    def log(self, numbers: Numbers, step: int) -> None:
        """Add numbers.

        :param numbers: finite ones, by name.
        :param step: the number of evaluations in the history until now.
        """
        raise NotImplementedError

    def stop(self, error: type[BaseException] | None = None) -> None:
        """End the run.

        :param error: by which the search ended, or None.
        """

    def __enter__(self) -> "Tracker":
        self.start()
        return self

    def __call__(self, progress: Progress) -> None:
        if progress.is_new:  # an earlier process has told of the others
            self.evaluations = progress.record["evaluation"] + 1
            self.log(numbers_of(progress, self.experts, self.groups, self.used), self.evaluations)

    def __exit__(self, error: type[BaseException] | None, *_) -> None:
        self.stop(error)

    def log_numbers(self, numbers: Numbers) -> None:
        """Add the numbers of the end of a run."""
        self.log(
            {name: value for name, value in numbers.items() if math.isfinite(value)},
            self.evaluations,
        )


class TensorBoard(Tracker):
    """Writes event files to `tensorboard` in the folder of the run."""

    package, module = "tensorboard", "torch.utils.tensorboard"

    def start(self) -> None:
        """Open a file of events."""
        self.writer = self.api.SummaryWriter(str(self.folder / "tensorboard"))
        rows = [f"    {name}: {value}" for name, value in self.settings.items()]
        if rows:
            self.writer.add_text("settings", "\n".join(rows))

    def log(self, numbers: Numbers, step: int) -> None:
        """Add numbers, on disk at once."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def stop(self, error: type[BaseException] | None = None) -> None:
        """Close the file."""
        self.writer.close()


class Wandb(Tracker):
    """Weights & Biases. A run that goes on is the same run there."""

    package = module = "wandb"

    def start(self) -> None:
        """Begin, or go on with, the run of this folder."""
        self.api.init(
            project=self.project, config=self.settings, resume="allow", **self.names_of_run()
        )

    def names_of_run(self) -> dict[str, Any]:
        """Arguments of `init` by which the package finds the run again."""
        return {"name": self.name, "id": self.run_id(), "dir": str(self.folder)}

    def run_id(self) -> str:
        """A name of this run alone, from a file in its folder: letters, digits and `-`."""
        note = self.folder / f"{self.package}_run_id"
        if not note.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            letters = re.sub("[^0-9A-Za-z]", "-", self.name)
            note.write_text(f"{letters[:40]}-{secrets.token_hex(4)}")
        return note.read_text().strip()

    def log(self, numbers: Numbers, step: int) -> None:
        """Add numbers."""
        self.api.log(numbers, step=step)

    def stop(self, error: type[BaseException] | None = None) -> None:
        """End the run, as one that failed if there was an error."""
        self.api.finish(exit_code=0 if error is None else 1)


class Trackio(Wandb):
    """Trackio, which has the interface of wandb and keeps its runs on this machine."""

    package = module = "trackio"

    def names_of_run(self) -> dict[str, Any]:
        """The id alone: trackio finds a run by its name."""
        return {"name": self.run_id()}

    def stop(self, error: type[BaseException] | None = None) -> None:
        """End the run."""
        self.api.finish()


class MLflow(Tracker):
    """MLflow, at the place that the variable MLFLOW_TRACKING_URI names."""

    package = module = "mlflow"
    LONGEST = 500  # characters of a setting, which older servers take

    def start(self) -> None:
        """Begin a run in the experiment of this project, or go on with the one of this folder."""
        self.api.set_experiment(self.project)
        note = self.folder / "mlflow_run_id"
        known = note.read_text().strip() if note.is_file() else None
        run = self.api.start_run(run_id=known, run_name=self.name)
        if known is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            note.write_text(run.info.run_id)
            settings = {name: str(value)[: self.LONGEST] for name, value in self.settings.items()}
            self.api.log_params(settings)

    def log(self, numbers: Numbers, step: int) -> None:
        """Add numbers. Names get the characters that MLflow allows."""
        self.api.log_metrics({_allowed(name): value for name, value in numbers.items()}, step=step)

    def stop(self, error: type[BaseException] | None = None) -> None:
        """End the run, as one that was killed or failed if there was an error."""
        if error is None:
            self.api.end_run("FINISHED")
        else:
            self.api.end_run("FAILED" if issubclass(error, Exception) else "KILLED")


TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": MLflow,
}


def numbers_of(
    progress: Progress,
    experts: Sequence[str] = (),
    groups: int = 1,
    used: Sequence[bool] = (),
) -> Numbers:
    """What trackers are told of an evaluation: finite numbers by name.

    :param progress: after the evaluation.
    :param experts: the names of the coefficients; none are told without names.
    :param groups: g, coefficients of an expert one after another; their mean is told.
    :param used: for each coefficient whether it weighs anything; the others are not in a mean.
    :return: `score` and `best` as the problem gives them, `task/NAME` and `best_task/NAME`,
        `coefficient/EXPERT`, `seconds` of the evaluation, and `evaluations`, the full evaluations
        so far. On minibatches `moving_average` in place of `best` and `best_task/NAME`.
    """
    record = progress.record
    name, best = "best", progress.best_record or {}
    if progress.window:
        name, best = "moving_average", {}
    numbers = {"score": progress.shown(progress.score), name: progress.shown(progress.best)}
    for name, score in (record.get("tasks") or {}).items():
        numbers[f"task/{sanitize(name)}"] = score
    for name, score in (best.get("tasks") or {}).items():
        numbers[f"best_task/{sanitize(name)}"] = score
    for name, mean in means_by_expert(record["coefficients"], experts, groups, used).items():
        numbers[f"coefficient/{sanitize(name)}"] = mean
    numbers["seconds"] = record.get("seconds", math.nan)
    numbers["evaluations"] = progress.done
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A table of tables and lists as one table, whose names have dots: `tasks.0.dev`."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
            value = {str(place): entry for place, entry in enumerate(value)}
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[f"{prefix}{name}"] = value
    return found


def _allowed(name: str) -> str:
    """A name of letters, digits and the signs that MLflow allows in names."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)
