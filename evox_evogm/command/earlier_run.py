"""What an earlier process left in a run folder, compared with the settings of now."""

from collections.abc import Sequence
from pathlib import Path

from evox_evogm.command.chosen_settings import FOUND_OUT
from evox_evogm.command.confirm import is_confirmed
from evox_evogm.command.minibatch_settings import check_whole_evaluations
from evox_evogm.command.result import read_result
from evox_evogm.command.run_folder import ENDS, RESULT, check_budget, check_same_settings
from evox_evogm.command.settings import RunSettings


def with_saved_choices(
    settings: RunSettings, saved: RunSettings, records: Sequence[dict], out: Path
) -> RunSettings:
    """The settings of now, with what an earlier process chose for `auto`.

    :param settings: of now.
    :param saved: of the run in the folder.
    :param records: the history of the run.
    :param out: the run folder.
    :raises ValueError: if the run cannot go on with these settings, in one sentence.
    """
    if saved.minibatches == "auto":  # of a version that had none
        saved = saved.model_copy(update={"minibatches": 1})
    check_same_settings(settings, saved, out)
    if settings.limit != saved.limit:
        check_budget(settings.limit, records, out)
    kept = list(FOUND_OUT)
    if settings.confirm is None:  # what was confirmed stays so
        kept += ["confirm", "confirm_examples"]
    settings = settings.model_copy(update={name: getattr(saved, name) for name in kept})
    check_whole_evaluations(settings)
    return settings


def ends_elsewhere(settings: RunSettings, saved: RunSettings) -> bool:
    """Whether the settings of now let the search end elsewhere than those of the run."""
    if settings.limit != saved.limit:
        return True
    for name in ENDS:
        if name != "budget" and getattr(settings, name) != getattr(saved, name):
            return True
    return False


def is_chosen_as_wanted(settings: RunSettings, out: Path) -> bool:
    """Whether the result in a run folder, if there is one, was chosen as settings want it."""
    if not settings.confirm:
        return True
    return (out / RESULT).is_file() and is_confirmed(read_result(out), settings)
