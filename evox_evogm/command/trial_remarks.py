"""Train or merge: what is known from the number of examples, and what a trial has shown."""

from collections.abc import Sequence

from evox_evogm.command.number_format import short, with_error
from evox_evogm.command.significance import as_difference, p_value
from evox_evogm.command.trial_comparison import compared_of
from evox_evogm.command.uncertainty import LEVEL
from evox_evogm.problems.tasks.task import Task
from evox_evogm.problems.trained_lora import is_trainable

# Measured on the synthetic suite (benchmarks/results/gradients.md): with so many dev examples over
# 13 tasks a merge is ahead of a LoRA trained on them, and with so many the LoRA is.
MERGING_WON, TRAINING_WON = 169, 650
MANY = 330  # the geometric mean


def note_of_many_examples(tasks: Sequence[Task]) -> list[str]:
    """A note if there may be enough dev examples to train on them instead.

    :param tasks: the dev tasks.
    """
    examples = sum(len(task.examples) for task in tasks)
    if examples < MANY or not all(map(is_trainable, tasks)):
        return []
    return [
        f"{examples:,} labelled dev examples may be enough to train a LoRA on them instead of "
        f"merging: on this project's synthetic tasks merging was ahead with {MERGING_WON}, and "
        f"training far ahead with {TRAINING_WON}; trial: true tries both here"
    ]


def remarks_on_trial(trial: dict) -> list[str]:
    """What a trial has shown, in sentences.

    :param trial: what `trial.json` holds.
    """
    if "failure" in trial:
        return [f"trial: it could not be made: {trial['failure']}"]
    difference, se, p = as_difference(trial["difference"])
    compared = compared_of(trial)
    learnt, held_back = trial["examples"]["learnt from"], trial["examples"]["held back"]
    chosen = trial["chosen"]
    start = "" if trial["start"] == "fresh" else ", from a merge on"
    trained = f"{short(compared['trained LoRA'])} for a LoRA trained on {learnt:,} others{start}"
    how = f"learning rate {chosen['lr']:g}, {chosen['epoch']} epochs"
    against = f"{short(compared['merge'])} for the best merge ({trial['best_merge']})"
    found = (
        f"trial on {held_back:,} dev examples: {trained} ({how}), {against}, in the plain mean "
        "over examples"
    )
    if "adapters" in compared:
        of = f"of {compared['adapters']} adapters and {compared['merges']} merges"
        found += f"; {of}, the best were chosen on one half and compared on the other, both ways"
    left_out = trial.get("not trained on")
    if left_out:
        found += f"; {', '.join(left_out)} has no right answers to learn and was not trained on"
    if p != p:
        return [f"{found}; the examples do not say whether that is chance"]
    by = f"by {with_error(abs(difference), se)}, {p_value(p)}"
    if p >= LEVEL:
        return [f"{found}; the difference ({by}) may be chance: neither side is clearly ahead"]
    if difference > 0:
        return [f"{found}; training is ahead ({by}): with so many examples, train on them"]
    return [f"{found}; merging is ahead ({by}): there are too few examples to train on"]
