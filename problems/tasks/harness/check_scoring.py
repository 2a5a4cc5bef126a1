"""Tasks of the harness whose scoring needs what is not here: a judge, a metric, or running code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from evox_evogm.problems.functions.code_uses import Use, uses_of

# Modules of which everything speaks to another machine.
NETWORK = (
    "aiohttp",
    "anthropic",
    "boto3",
    "cohere",
    "google.genai",
    "google.generativeai",
    "googleapiclient",
    "gradio_client",
    "groq",
    "http.client",
    "httpx",
    "huggingface_hub.AsyncInferenceClient",
    "huggingface_hub.InferenceClient",
    "langchain_anthropic",
    "langchain_openai",
    "litellm",
    "mistralai",
    "ollama",
    "openai",
    "replicate",
    "requests",
    "socket",
    "together",
    "urllib.request",
    "urllib3",
    "vertexai",
    "websocket",
    "websockets",
)
# The text stands for the metric of the package evaluate that runs what the model writes.
RUNS_CODE = ('"code_eval"', "eval", "exec", "os.popen", "os.system", "runpy", "subprocess")
JUDGE = "llm_as_judge"  # in the names of metrics of unitxt that ask another model
TASKS = "lm_eval.tasks"  # whose modules import each other by full names


def check_scoring(task, confirm_unsafe_code: bool) -> None:
    """Refuse a harness task whose score needs another machine, a missing metric, or running code.

    :param task: the harness's own object.
    :raises ValueError: in one sentence that says what to do.
    """
    judges = [name for name in task.aggregation() if JUDGE in str(name)]
    network = judges[0] if judges else find_use(task, NETWORK)
    if network is not None:
        raise ValueError(
            "expected a task that is scored on this machine, found one that asks over the network "
            f"({network}); take another task, or ask the judge in a function of yours (fitness: "
            "module:function)"
        )
    missing = missing_metrics(task)
    if missing:
        raise ValueError(
            f"expected metrics that lm-eval or the package evaluate has, found {missing[0]!r}, "
            "which could not be loaded; evaluate loads some from the hub: load it once with a "
            "network, or take another task"
        )
    marked = getattr(task, "UNSAFE_CODE", False)
    code = None if marked else find_use(task, RUNS_CODE)
    if code is not None:
        task.UNSAFE_CODE = True  # so that it is not tried on answers that say nothing
    if (marked or code is not None) and not confirm_unsafe_code:
        which = "" if code is None else f" ({code})"
        raise ValueError(
            "expected confirm_unsafe_code: true for a task that runs code which the model writes"
            f"{which}, found none; run it in a container"
        )


def missing_metrics(task) -> list[str]:
    """The names of metrics by which answers would be scored, and that the harness did not find."""
    from lm_eval.api.task import ConfigurableTask

    itself = type(task).process_results is not ConfigurableTask.process_results
    if itself or task.config.process_results is not None or task.OUTPUT_TYPE != "generate_until":
        return []  # other kinds of requests are scored by names alone
    return [name for name, function in task._metric_fn_list.items() if function is None]


def find_use(task, names: tuple[str, ...]) -> Use | None:
    """The first of some modules and functions that the scoring of a task reaches for.

    :param names: such as `openai`, which stands for all in it.
    """
    for metric in task.config.metric_list or []:
        named = f'"{metric.get("metric")}"'
        if named in names:
            return Use(named, Path(f"{task.config.task}.yaml"))
    for function in scoring_functions(task):
        for use in uses_of(function, TASKS):
            if any(use.what == name or use.what.startswith(f"{name}.") for name in names):
                return use
    return None


def scoring_functions(task) -> list[Callable]:
    """The functions by which a harness task scores answers, as far as they are its own.

    :param task: the harness's own object.
    """
    from lm_eval.api.task import ConfigurableTask

    found: list[Any] = [task.config.process_results]
    for name in ("process_results", "aggregation"):
        method = getattr(type(task), name)
        if method is not getattr(ConfigurableTask, name):
            found.append(method)
    for metric in task.config.metric_list or []:
        found += [metric.get("metric"), metric.get("aggregation")]
    for one in task.config.filter_list or []:
        for step in one["filter"]:
            found += step.values()
    return [function for function in found if callable(function)]
