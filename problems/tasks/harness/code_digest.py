"""What of a harness task does not show in its requests: functions, right answers and scoring."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from evox_evogm.problems.functions.load_function import digest_of

SCORING = ("output_type", "doc_to_target", "doc_to_choice", "metric_list", "filter_list")


def code_digest(tasks: Iterable[Any]) -> str:
    """Twelve hexadecimal digits that change with how harness tasks score answers.

    They stand for the source of the functions that a task names, with the modules beside it that
    these import, and for its metrics and filters.
    """
    from lm_eval.api.task import ConfigurableTask

    by_file: dict[str, str] = {}  # digests

    def as_text(value: Any) -> str:
        code = getattr(value, "__code__", None)
        name = getattr(value, "__qualname__", type(value).__qualname__)
        if code is None:
            return name
        if code.co_filename not in by_file:
            by_file[code.co_filename] = digest_of(value)
        return f"{name} {by_file[code.co_filename]}"

    hashed = hashlib.sha256()
    for task in tasks:
        described = {}
        for name, value in vars(task.config).items():
            if name in SCORING or callable(value):
                described[name] = value
        if type(task) is not ConfigurableTask:
            described["class"] = list(filter(callable, vars(type(task)).values()))
        hashed.update(json.dumps(described, default=as_text).encode())
    return hashed.hexdigest()[:12]
