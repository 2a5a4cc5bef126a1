"""A finished run, opened again by its folder alone: for what comes after a merge."""

import json
from pathlib import Path

from evox_evogm.command.merge_run import MergeRun
from evox_evogm.command.run_files import INPUTS, check_finished
from evox_evogm.command.run_folder import read_table, saved_settings
from evox_evogm.command.settings import RunSettings
from evox_evogm.command.settings_file import read_settings


def settings_of_run(out: Path, settings_file: Path | None) -> tuple[RunSettings, Path]:
    """The settings of a run, and the folder that their paths are relative to.

    :param settings_file: the settings file; needed where its folder was moved.
    :raises ValueError: if the folder of the settings is not known or not there.
    """
    saved = saved_settings(out)
    assert saved is not None
    if settings_file is not None:
        return saved, read_settings(settings_file)[1]
    inputs = read_table(out / INPUTS, json.loads)
    folder, from_here = inputs.get("settings_folder"), inputs.get("settings_folder_from_here")
    if not isinstance(folder, str) or not Path(folder).is_dir():
        if isinstance(from_here, str) and (out / from_here).is_dir():  # both were moved
            return saved, (out / from_here).resolve()
        found = "found none" if folder is None else f"found no {folder}"
        expected = f"expected the folder of the settings file in {out / INPUTS}"
        raise ValueError(f"run: {expected}, {found}; give the file by --settings")
    return saved, Path(folder)


class OpenedRun(MergeRun):
    """A finished run, on the device of this machine.

    :param device: in place of the one in the settings, if it is not None.
    """

    def __init__(self, settings: RunSettings, folder: Path, out: Path, device: str | None = None):
        self.device_here = device
        super().__init__(settings, folder, out)

    def _settings_as_saved(self, settings: RunSettings) -> RunSettings:
        found = super()._settings_as_saved(settings)
        if self.device_here is None:
            return found
        return found.model_copy(update={"device": self.device_here})


def open_run(out: Path, settings_file: Path | None = None, device: str | None = None) -> MergeRun:
    """A finished run with its base, experts and tasks, loaded and checked. It has to be closed.

    :param out: the run folder.
    :param settings_file: the settings file; needed where its folder was moved.
    :param device: in place of the one that the run was made on.
    :raises ValueError: if there is no finished run, or its inputs are not there or were changed.
    """
    check_finished(out)
    return OpenedRun(*settings_of_run(out, settings_file), out, device)
