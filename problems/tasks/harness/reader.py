"""Read a task of the LM Evaluation Harness by its name."""

from collections.abc import Mapping, Sequence
from typing import Any

from evox_evogm.problems.tasks.harness.check_scoring import check_scoring
from evox_evogm.problems.tasks.harness.code_digest import code_digest
from evox_evogm.problems.tasks.harness.documents import (
    Documents,
    choose_documents,
    with_documents,
)
from evox_evogm.problems.tasks.harness.example import HarnessExample
from evox_evogm.problems.tasks.harness.metric import TOGETHER, HarnessMetric
from evox_evogm.problems.tasks.harness.package import (
    lm_eval_version,
    load_tasks,
    seeded_as_by_the_harness,
)
from evox_evogm.problems.tasks.harness.source import HarnessSource, Prompting
from evox_evogm.problems.tasks.harness.task import HarnessTask
from evox_evogm.problems.tasks.readers import content_version
from evox_evogm.problems.tasks.task import Task

FEWSHOT_SEED = 1234  # of the harness
PROTOCOL = "lm-eval"  # in reports


def read_lm_eval(
    task: str,
    *,
    name: str | None = None,
    metric: str | None = None,
    filter: str | None = None,
    num_fewshot: int | None = None,
    fewshot_seed: int = FEWSHOT_SEED,
    dev: int | None = None,
    test: int | None = None,
    include_path: str | None = None,
    chat: bool = False,
    system_instruction: str | None = None,
    confirm_unsafe_code: bool = False,
) -> tuple[Task, Task]:
    """Read a task of the LM Evaluation Harness, or a group of tasks that is scored as one.

    The test documents are those that the harness evaluates. The dev documents are validation or
    training documents, or where there are none the head of the others, which is then no test.

    :param task: the name, as `lm_eval --tasks` takes it. The score of a group is the mean over all
        documents of its tasks.
    :param name: in reports; by default that of the task.
    :param metric: of the task; by default its first that is better when higher. One that is better
        when lower counts with a minus.
    :param filter: of the answers, by its name in the task; by default its first.
    :param num_fewshot: worked examples before each question; by default the task's own number.
    :param fewshot_seed: of their choice.
    :param dev: how many documents the search sees; by default all of another split. Those of a
        group are spread over its tasks by their sizes.
    :param test: how many documents are kept for the test; by default all.
    :param include_path: a folder with YAML files of more tasks.
    :param chat: put prompts through the chat template of the tokenizer, worked examples as turns.
    :param system_instruction: goes before everything else.
    :param confirm_unsafe_code: that a task may run code which the model writes.
    :return: the dev and the test task.
    :raises ModuleNotFoundError: if lm-eval is not installed.
    :raises ValueError: if the task or a setting cannot be used, in one sentence.
    """
    found = load_tasks(task, include_path)
    settings = {
        "lm_eval": task,
        "metric": metric,
        "filter": filter,
        "num_fewshot": num_fewshot,
        "fewshot_seed": fewshot_seed,
        "chat": chat,
        "system_instruction": system_instruction,
        "version": lm_eval_version(),
        "code": code_digest(found.values()),
    }
    parts: list[tuple[HarnessSource, HarnessSource]] = []
    left_out = 0
    try:
        for one in found.values():
            check_answerable(one, confirm_unsafe_code)
            set_fewshot(one, num_fewshot)
        sizes = [len(one.eval_docs) for one in found.values()]
        shares = zip(spread(dev, sizes), spread(test, sizes), strict=True)
        with seeded_as_by_the_harness():
            for one, (dev_share, test_share) in zip(found.values(), shares, strict=True):
                shots = one.config.num_fewshot or 0
                prompting = Prompting(shots, fewshot_seed, chat, system_instruction)
                documents = choose_documents(one, dev_share, test_share)
                left_out += documents.left_out
                parts.append(_make_sources(one, documents, prompting, metric, filter))
        for of_split in zip(*parts, strict=True):
            _check_together(of_split)
    except (ValueError, AssertionError) as error:  # the harness asserts that it has examples
        raise ValueError(f"lm_eval task {task!r}: {error}") from error
    versions = sorted({f"version {one.VERSION}" for one in found.values()})
    made = {
        "name": name or task,
        "chat": chat,
        "settings": tuple(settings.items()),
        "left_out": left_out,
    }
    return _as_tasks(parts, f"lm-eval {lm_eval_version()}, {' and '.join(versions)}", made)


def _as_tasks(
    parts: Sequence[tuple[HarnessSource, HarnessSource]], version: str, made: Mapping[str, Any]
) -> tuple[HarnessTask, HarnessTask]:
    """The dev and the test task of one or several harness tasks.

    :param parts: the dev and the test documents of each.
    :param version: of the harness and of its tasks.
    :param made: further arguments of both tasks.
    """
    first, _ = parts[0]
    generation = first.generations[0]
    max_new_tokens = 16 if generation is None else generation.max_new_tokens
    dev, test = [_make_examples(sources) for sources in zip(*parts, strict=True)]
    tag = f"{version}, {content_version([*dev, *test])}"
    tasks = []
    for examples in (dev, test):
        task = HarnessTask(
            version=tag,
            metric=first.metric.label,
            examples=tuple(examples),
            max_new_tokens=max_new_tokens,
            protocol=PROTOCOL,
            **made,
        )
        tasks.append(task)
    return tasks[0], tasks[1]


def check_answerable(task, confirm_unsafe_code: bool) -> None:
    """Refuse a harness task that asks for something that is not answered here.

    :raises ValueError: saying what.
    """
    from lm_eval.api.task import ConfigurableTask

    if not isinstance(task, ConfigurableTask):
        raise ValueError(
            "expected a task that is described by YAML, found one of the class "
            f"{type(task).__name__}"
        )
    if getattr(task, "MULTIMODAL", False):
        raise ValueError("expected a task of texts, found one with images or sound")
    check_scoring(task, confirm_unsafe_code)
    if task.config.repeats != 1:
        raise ValueError(
            f"expected one answer to each question, found repeats {task.config.repeats}"
        )


def set_fewshot(task, num_fewshot: int | None) -> None:
    """Give a harness task another number of worked examples.

    :param num_fewshot: None for its own.
    :raises ValueError: if it is below 0, or the task has a fixed number of 0.
    """
    own = task.config.num_fewshot
    if num_fewshot is None:
        task.set_config(key="num_fewshot", value=own or 0)
        return
    if num_fewshot < 0:
        raise ValueError(f"num_fewshot: expected at least 0, found {num_fewshot}")
    if own == 0 and num_fewshot:
        raise ValueError(
            f"num_fewshot: expected 0, which the task fixes and the harness keeps, "
            f"found {num_fewshot}"
        )
    task.set_config(key="num_fewshot", value=num_fewshot)


def spread(count: int | None, sizes: Sequence[int]) -> list[int | None]:
    """How many documents of each task of a group are used, by their sizes, together `count`.

    :param count: None for all.
    :raises ValueError: if there are fewer than tasks.
    """
    if count is None:
        return [None] * len(sizes)
    if count < len(sizes):
        raise ValueError(
            f"expected at least one document for each of {len(sizes)} tasks of the group, "
            f"found {count}"
        )
    shares = [1] * len(sizes)
    wanted = [count * size / sum(sizes) for size in sizes]
    for _ in range(count - len(sizes)):
        behind = max(range(len(sizes)), key=lambda place: wanted[place] - shares[place])
        shares[behind] += 1
    return list(shares)


def _make_sources(
    task, documents: Documents, prompting: Prompting, metric: str | None, filter: str | None
) -> tuple[HarnessSource, HarnessSource]:
    """What asks the dev documents, and what asks the test documents."""
    dev = with_documents(task, documents.dev, hidden=documents.test)
    # Where the harness would choose worked examples, its choice may be the question itself.
    test = with_documents(task, documents.test, hidden=None if documents.is_official else ())
    return (
        HarnessSource(dev, HarnessMetric(dev, metric, filter), prompting),
        HarnessSource(test, HarnessMetric(test, metric, filter), prompting),
    )


def _check_together(sources: Sequence[HarnessSource]) -> None:
    """Refuse a group that has no mean over documents."""
    if len(sources) == 1:
        return
    labels = {source.metric.label for source in sources}
    if len(labels) > 1:
        raise ValueError(
            f"metric: expected one that all tasks of the group have first, found "
            f"{', '.join(sorted(labels))}; name one, or the tasks"
        )
    if any(source.metric.kind == TOGETHER for source in sources):
        raise ValueError(
            f"metric: expected one that is averaged over documents for a group of tasks, found "
            f"{sources[0].metric.label}; name the tasks one by one"
        )
    found = {(source.metric.kind, source.metric.sign): source.name for source in sources}
    if len(found) > 1:
        one, other, *_ = found.values()
        raise ValueError(
            f"metric: expected {sources[0].metric.label} to score all tasks of the group in one "
            f"way, found that it scores {one} and {other} differently; name the tasks one by one"
        )


def _make_examples(sources: Sequence[HarnessSource]) -> list[HarnessExample]:
    """The documents of some sources, one after another."""
    examples = []
    for source in sources:
        prefix = f"{source.name} " if len(sources) > 1 else ""
        for place in range(len(source.documents)):
            example = HarnessExample(
                id=f"{prefix}{place}",
                prompt=source.prompt_text(place),
                target=source.gold_text(place),
                requests_sha256=source.requests_sha256(place),
                source=source,
                place=place,
            )
            examples.append(example)
    return examples
