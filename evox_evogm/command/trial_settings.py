"""The settings of a trial: is training on the dev examples ahead of merging?"""

from typing import Literal

from pydantic import ValidationError, field_validator

from evox_evogm.command.strict_settings import StrictSettings, check_names, sentence, setting

EXPECTED = "true, false or a table"


class TrialSettings(StrictSettings):
    """How LoRAs are trained on four fifths of the dev examples, and compared on the last fifth."""

    epochs: int = setting(
        6, "a whole number", "Passes over the examples; scored after each third of them.", ge=1
    )
    rates: list[float] = setting(
        [1e-3, 3e-3, 1e-2],
        "a list of numbers above 0",
        "Learning rates of AdamW; the one that is best on the last fifth is taken.",
    )
    start: Literal["fresh", "merge"] = setting(
        "fresh",
        "a str",
        "Where training starts: from a fresh adapter of rank 8, or from a merge as one adapter.",
    )
    row: bool = setting(
        False,
        "a bool",
        "Train one LoRA on all dev examples too: a row of the final table, and a folder "
        "lora_on_dev in PEFT format.",
    )

    @field_validator("rates")
    @classmethod
    def _check_rates(cls, rates: list[float]) -> list[float]:
        if not rates or not all(0 < rate < float("inf") for rate in rates):
            raise ValueError(f"rates: expected a list of numbers above 0, found {rates}")
        return rates


def _number(value):
    """The number that a text stands for, if it does: to YAML 1e-3 is a text."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def parse_trial(value) -> TrialSettings | None:
    """The settings of a trial, or None if there is to be none.

    :param value: true, false, a table of settings, or settings that were parsed before.
    :raises ValueError: if it is something else, or a setting in it cannot be used.
    """
    if value is None or value is False:
        return None
    if value is True:
        return TrialSettings()
    if isinstance(value, TrialSettings):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"trial: expected {EXPECTED}, found {value!r}")
    check_names(value, list(TrialSettings.model_fields), "trial")
    if isinstance(value.get("rates"), list):
        value = {**value, "rates": [_number(rate) for rate in value["rates"]]}
    try:
        return TrialSettings.model_validate(value)
    except ValidationError as error:
        raise ValueError(f"trial: {sentence(TrialSettings, error)}") from error
