"""Settings files for tests."""

import pytest

from evox_evogm.command.settings_file import read_settings

NEEDED = {
    "base": "some/model",
    "experts": "adapters",
    "tasks": "[{reasoning_gym: chain_sum, dev: 2, test: 2}]",
}


def settings_writer(folder):
    """A function that writes a settings file with some changes; None leaves a setting out."""

    def write(**changes):
        path = folder / "run.yaml"
        values = {**NEEDED, **changes}
        path.write_text(
            "".join(f"{name}: {value}\n" for name, value in values.items() if value is not None)
        )
        return path

    return write


def refusal(path, **overrides):
    """The one sentence by which a settings file is refused."""
    with pytest.raises(ValueError) as caught:
        read_settings(path, **overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message
