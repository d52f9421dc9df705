"""What the closing table of `harden` says of the purifier."""

import io

import numpy as np
import pytest
from rich.console import Console

from s2ap_train.ladder import Ladder, Rung, print_ladder, purifier_in_words
from s2ap_train.measures.paired import paired_difference

RUNG = Rung("undefended", 0.9, 0.5, 0.4, 0.4)


def ladder(before: int | None, after: int = 0) -> Ladder:
    """Twenty images of which the classifier has the first ones right, without the purifier and with it."""
    images = np.arange(20)
    effect = None if before is None else paired_difference(images < before, images < after)
    return Ladder((RUNG,), 20, 0.1, "undefended", effect)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        # of n discordant images all on one side: 2 / 2^n
        (14, 8, "LOWERS the adaptive figure beyond noise, from 70.0% to 40.0% (exact McNemar p = 0.031)"),
        (8, 14, "raises the adaptive figure beyond noise, from 40.0% to 70.0% (exact McNemar p = 0.031)"),
        (13, 8, "changes the adaptive figure by no more than noise, from 65.0% to 40.0% (exact McNemar p = 0.062)"),
        (8, 8, "changes the adaptive figure by no more than noise, from 40.0% to 40.0% (exact McNemar p = 1)"),
    ],
)
def test_what_the_purifier_changes_is_told_with_how_sure_that_is(before: int, after: int, said: str) -> None:
    assert purifier_in_words(ladder(before, after)) == f"in front of this classifier (undefended) it {said}"


def test_the_table_ends_with_the_purifier() -> None:
    for one, said in ((ladder(14, 8), "LOWERS"), (ladder(None), "purifier  off")):
        told = io.StringIO()
        print_ladder(one, Console(file=told, width=120))
        assert said in told.getvalue().splitlines()[-1]
