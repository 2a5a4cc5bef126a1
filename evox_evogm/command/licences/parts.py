"""A part of a merge, the base or an expert, with its licence."""

from dataclasses import dataclass

from evox_evogm.command.licences.reading import card_is_away, read_licence


@dataclass(frozen=True)
class Part:
    """A part of a merge and its licence.

    :param name: `base`, or the name of the expert.
    :param licence: in small letters as the hub has it, such as `apache-2.0`; None if unknown.
    :param away: whether it is on the hub, and its card was not to be had here.
    """

    name: str
    licence: str | None
    away: bool = False


def part_of(name: str, source) -> Part:
    """A part of a merge with its licence.

    :param source: as `read_licence` takes it.
    """
    licence = read_licence(source)
    return Part(name, licence, away=licence is None and card_is_away(source))
