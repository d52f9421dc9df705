from dataclasses import replace
from math import inf

import numpy as np
import pytest

from s2ap_defend.executors.groups import waves_of
from s2ap_defend.sequential import SequentialTest

CLOSING = SequentialTest(
    evidence="margin",
    edges=np.zeros((9, 1), dtype=np.float32),
    increments=np.ones((9, 2)),
    lower=np.array([-inf, 0.0, 0.0, *[np.nextafter(2.0, -inf)] * 6]),
    upper=np.array([inf, *[2.0] * 8]),
    final_threshold=inf,
    waves=(2, 3, 3, 1),
    vote_weights=np.ones(9),
    answer="mixed",
    opening=2,
    correction="keep",
)
"""Nothing is left undecided behind the fourth of nine members."""


def sizes(test: SequentialTest, purify: str = "off") -> list[int]:
    return [len(wave) for wave in waves_of(test, purify)]  # type: ignore[arg-type]


def test_members_that_only_flagged_inputs_ask_are_one_wave_of_their_own() -> None:
    assert CLOSING.last == 3
    assert sizes(CLOSING) == [2, 2, 5]
    assert sizes(CLOSING, "suspicious") == [2, 0, 2, 5]


def test_waves_are_those_of_the_file_where_a_vote_can_end_early() -> None:
    curtailed = replace(CLOSING, answer="robust")
    assert curtailed.curtails
    assert sizes(curtailed) == [2, 3, 3, 1]


@pytest.mark.parametrize("waves", [(2, 7), (4, 5), (9,)])
def test_no_wave_is_parted_in_the_opening_and_members_are_asked_in_order(waves: tuple[int, ...]) -> None:
    found = waves_of(replace(CLOSING, waves=waves), "off")
    assert [i for wave in found for i in wave] == list(range(9))
    assert len(found[0]) == waves[0]


def test_waves_are_those_of_the_file_where_inputs_are_undecided_until_the_end() -> None:
    never = replace(CLOSING, lower=np.array([-inf, *[0.0] * 8]))
    assert never.last == 9
    assert sizes(never) == [2, 3, 3, 1]
