"""Which mode is taken: merging has to save more time than it costs."""

import pytest

from evox_evogm.problems.mode_choice import faster_modes


def seconds(unmerged, merged_in_weights):
    return {"unmerged": unmerged, "merged": merged_in_weights}


@pytest.mark.parametrize(
    ("load_seconds", "expected"),
    [
        (0.0, ["merged", "unmerged", "merged"]),
        (3.9, ["merged", "unmerged", "merged"]),
        (4.0, ["unmerged", "unmerged", "unmerged"]),
    ],
)
def test_merging_has_to_save_the_time_to_load_over_all_groups(load_seconds, expected):
    """Savings of 3 and 1 seconds; the second group would lose 5 and stays unmerged."""
    groups = [seconds(5.0, 2.0), seconds(1.0, 6.0), seconds(2.0, 1.0)]
    assert faster_modes(groups, load_seconds) == expected


def test_groups_that_are_as_fast_in_both_modes_are_unmerged():
    assert faster_modes([seconds(1.0, 1.0), seconds(3.0, 1.0)], 0.0) == ["unmerged", "merged"]
