"""The package lm-eval: whether it is there, in a version that is known, and its tasks by name."""

import difflib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGE = "lm_eval"
VERSIONS = ">=0.4.10,<0.5"
# What `simple_evaluate` of the harness seeds the generators with.
SEED, OTHER_SEED = 0, 1234


def lm_eval_version() -> str:
    """The version of lm-eval.

    :raises ModuleNotFoundError: if it is not installed.
    :raises ValueError: if it is a version with which scores may mean something else.
    """
    from packaging.specifiers import SpecifierSet

    try:
        found = version(PACKAGE)
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f'lm_eval tasks need the package: pip install "lm-eval{VERSIONS}"'
        ) from error
    if found not in SpecifierSet(VERSIONS):
        raise ValueError(f"lm_eval: expected lm-eval {VERSIONS}, found {found}")
    return found


def load_tasks(name: str, include_path: str | None = None) -> dict[str, Any]:
    """The tasks of the harness that a name stands for: one, or those of a group or a tag.

    :param name: as the harness knows it.
    :param include_path: a folder with more tasks, which is searched first.
    :return: by name the harness's own objects, new ones with every call.
    :raises ValueError: if there is no such task, or it cannot be built.
    """
    lm_eval_version()
    manager = _manager_of(name, include_path)
    if name not in manager.all_tasks:
        near = difflib.get_close_matches(name, manager.all_tasks, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"lm_eval: expected a task of the harness, found {name!r}{hint}")
    try:
        with seeded_as_by_the_harness():
            return _load(manager, name)
    except Exception as error:  # of datasets, of jinja, or of the task's own code
        reason = " ".join(str(error).split())
        raise ValueError(
            f"lm_eval task {name!r}: expected one that can be built here, found "
            f"{type(error).__name__}: {reason}"
        ) from error


def _manager_of(name: str, include_path: str | None):
    """A task manager that has the name, if there is one.

    The harness's own tasks take seconds to list, and a folder takes none.
    """
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        manager = TaskManager(include_path=include_path, include_defaults=False)
        if name in manager.all_tasks:
            return manager
    return _manager_with_defaults(include_path)


@lru_cache
def _manager_with_defaults(include_path: str | None):
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


def _load(manager, name: str) -> dict[str, Any]:
    if hasattr(manager, "load"):  # from 0.4.12
        return dict(manager.load([name])["tasks"])
    from lm_eval import tasks
    from lm_eval.evaluator_utils import get_task_list

    outputs = get_task_list(tasks.get_task_dict([name], manager))
    return {output.task_name: output.task for output in outputs}


@contextmanager
def seeded_as_by_the_harness() -> Iterator[None]:
    """Inside the block the global generators are seeded as the harness does; some tasks draw.

    Afterwards they are as they were.
    """
    import numpy as np
    import torch

    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(SEED)
            np.random.seed(OTHER_SEED)
            torch.random.default_generator.manual_seed(OTHER_SEED)
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
