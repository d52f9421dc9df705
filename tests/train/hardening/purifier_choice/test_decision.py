"""From the table of a sweep to a purifier: p-values by hand, and the words that are said of planted rows."""

from dataclasses import replace

import numpy as np
import pytest
from tests.train.toy_purifiers import STRONG

from s2ap_train.hardening.purifier_choice.decision import best_row, masked, reason, rows_of
from s2ap_train.hardening.purifier_choice.sweep import Tried
from s2ap_train.purifier import Purification
from s2ap_train.recipe.purifier_grid import canonical

OFF = canonical(Purification(steps=0))


def tried(config, right, bpda=None):
    """A purifier behind which these of the images are right under attack."""
    everything, none = np.ones(len(right), bool), np.zeros(len(right), bool)
    return Tried(
        config=config,
        clean=everything,
        oblivious=everything,
        gradient=everything,
        bpda=none if bpda is None else np.array(bpda, bool),
        surrogate=none,
        square=None,
        adaptive=np.array(right, bool),
        milliseconds=0.0,
    )


SAM = replace(STRONG, rho=0.2)


def test_p_values_are_mcnemars_by_hand():
    off = tried(OFF, [1, 1, 1, 1, 1, 1, 0, 0, 1, 0])
    plain = tried(STRONG, [0, 0, 0, 0, 0, 1, 1, 0, 1, 0])  # loses five, gains one: 2 (1 + 6) / 2^6
    sam = tried(SAM, [0, 0, 0, 0, 0, 0, 0, 0, 1, 0])  # loses six of off: 2 / 2^6; of rho 0 two: 2 / 2^2
    rows = rows_of([off, plain, sam])
    assert [row.p_against_off for row in rows] == [None, pytest.approx(14 / 64), pytest.approx(2 / 64)]
    assert [row.p_against_rho_0 for row in rows] == [None, None, 0.5]
    assert [row.adaptive_accuracy for row in rows] == [0.7, 0.3, 0.1]
    assert [row.network_passes for row in rows] == [0, 2, 4]
    assert rows[0].adaptive_interval == pytest.approx((0.3475, 0.9333), abs=1e-4), "Clopper-Pearson of 7 in 10"
    with pytest.raises(ValueError, match="no purifier of the sweep is off"):
        rows_of([plain, sam])


def test_an_ascent_that_hurts_is_called_out():
    right = np.zeros(20, bool)
    right[:4] = True
    rows = rows_of([tried(OFF, right), tried(STRONG, np.ones(20, bool)), tried(SAM, np.arange(20) < 12)])
    text = reason(rows, 2, "recipe", 20)
    assert "60.0% stay right, 20.0% without a purifier, 100.0% with rho 0." in text
    assert "The purifier raises the adaptive figure beyond noise (exact McNemar p = 0.0078)." in text
    assert "Its sharpness-aware ascent LOWERS the adaptive figure beyond noise (exact McNemar p = 0.0078)." in text
    assert "The best of all rows: J-free, sigma 0.05, radius 0.3 linf, 1 step of 0.7, rho 0, bank of 2" in text
    assert best_row(rows) == 1
    assert "Another SAM setting" not in text, "its own is the best of those"


def test_a_recipe_that_switches_the_purifier_off_is_told_what_it_gave_up():
    rows = rows_of([tried(OFF, [0] * 10 + [1, 1]), tried(STRONG, [1] * 12)])
    text = reason(rows, 0, "recipe", 12)
    assert text.startswith(
        "The purifier is off, as the recipe says: under the white-box attack 16.7% stay right, 100.0%"
    )
    assert "That one raises the adaptive figure beyond noise (exact McNemar p = 0.002)." in text
    assert reason(rows[:1], 0, "validation", 12).endswith("16.7% stay right.")


@pytest.mark.parametrize(("broken", "left", "said"), [(5, 20, False), (6, 20, True), (5, 10, True), (0, 0, False)])
def test_gradients_are_masked_where_six_images_or_half_of_those_left_break_without_them(broken, left, said):
    # five images lost and none gained: 2 / 2^5 = .063; six: .031
    images = np.arange(20)
    one = replace(tried(STRONG, images >= 20, bpda=images < broken), gradient=images < left)
    row = rows_of([tried(OFF, images < 0), one])[1]
    assert row.gradient_accuracy == left / 20
    assert masked(row, 20) is said


def test_a_masked_row_is_not_said_to_raise_and_is_marked_where_it_is_the_best():
    images = np.arange(20)
    rows = rows_of([tried(OFF, images < 2), tried(STRONG, images >= 6, bpda=images < 6)])
    text = reason(rows, 1, "recipe", 20)
    assert "Its gradients are masked: of 20 images that its exact gradient left, 6 were broken without it" in text
    assert "may only seem to lift the adaptive figure" in text
    assert "raises" not in text
    rows = rows_of([*map(tried, (OFF, SAM), (images < 2, images < 2)), tried(STRONG, images >= 6, bpda=images < 6)])
    assert "70.0% (its gradients are masked)." in reason(rows, 1, "recipe", 20)


def test_a_winner_at_the_edge_of_the_grid_and_among_many_rows_is_told():
    images = np.arange(20)
    wide = replace(STRONG, radius=0.4)
    weaker = [tried(OFF, images < 2), tried(STRONG, images < 4), tried(replace(STRONG, radius=0.35), images < 5)]
    text = reason(rows_of([*weaker, tried(wide, images < 12)]), 3, "validation", 20)
    assert "It lies at the edge of what was tried: radius 0.4 is the largest; better ones may lie beyond." in text
    assert "not corrected for the 4 rows that were tried" in text
    text = reason(rows_of([*weaker[:2], tried(wide, images < 3), weaker[2]]), 3, "validation", 20)
    assert "edge" not in text, "0.35 lies between 0.3 and 0.4; sigma and steps were not varied"
    text = reason(rows_of([*weaker[:2], tried(SAM, images < 3)]), 1, "validation", 20)
    assert "edge" not in text, "there is nothing below rho 0"
