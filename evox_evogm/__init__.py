"""EvoGM for EvoX: merge language-model experts by evolutionary generative optimisation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evox_evogm.algorithms.evogm import EvoGM
    from evox_evogm.algorithms.gradient_search import GradientSearch
    from evox_evogm.algorithms.surrogate import Outcomes, SurrogateSettings
    from evox_evogm.algorithms.surrogate_evogm import SurrogateEvoGM
    from evox_evogm.monitoring.monitor import MergeMonitor
    from evox_evogm.resume.resumable_search import ResumableSearch

__all__ = [
    "EvoGM",
    "GradientSearch",
    "MergeMonitor",
    "Outcomes",
    "ResumableSearch",
    "SurrogateEvoGM",
    "SurrogateSettings",
]
# Imported when asked for: torch and EvoX take three seconds, and `evogm --help` needs neither.
MODULES = {
    "EvoGM": "algorithms.evogm",
    "GradientSearch": "algorithms.gradient_search",
    "MergeMonitor": "monitoring.monitor",
    "Outcomes": "algorithms.surrogate",
    "ResumableSearch": "resume.resumable_search",
    "SurrogateEvoGM": "algorithms.surrogate_evogm",
    "SurrogateSettings": "algorithms.surrogate",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
