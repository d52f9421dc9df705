from dataclasses import replace

import numpy as np
import pytest
from tests.train.redteam.ablation.toy_target import LEAST, task_of, toy
from tests.train.toy_purifiers import two_halves

from s2ap_train.redteam.ablation.ablation import judge_row
from s2ap_train.redteam.ablation.costs import BASELINES, comparisons, part_costs
from s2ap_train.redteam.ablation.names import BARE, CONFIDENCE, FULL, PRUNED, WIDER
from s2ap_train.redteam.rows import effect_of


def known_rows():
    """Ten images a step: each row has its first ones."""
    row = judge_row(toy(), [task_of(two_halves(0.2), 0.0)], two_halves(0.2).images, [], LEAST)

    def with_right(label, kept, clean=20):
        first = np.arange(20)
        return replace(row, clean_right=first < clean, label_right=first < label, kept=first < kept)

    rows = {BARE: with_right(2, 2), PRUNED: with_right(14, 14, 16), CONFIDENCE: with_right(14, 17, 16)}
    return rows | {FULL["reject"]: with_right(6, 18), FULL["correct"]: with_right(12, 18, 19)}


def test_costs_compare_rows_image_by_image():
    found = {(cost.part, cost.measure): cost.effect for cost in part_costs(known_rows(), FULL["correct"])}
    assert set(found) == {
        ("least confident flagged, added to the robust classifier", "right or flagged"),
        ("correction instead of rejection", "label right"),
    }
    effect = found["least confident flagged, added to the robust classifier", "right or flagged"]
    assert (effect.before, effect.after, effect.gained, effect.lost) == (0.7, 0.85, 3, 0)
    assert found["correction instead of rejection", "label right"].difference == pytest.approx(0.3)


def test_the_served_file_is_compared_with_every_baseline_in_every_figure():
    rows = known_rows()
    found = comparisons(rows, FULL["correct"])
    assert [one.baseline for one in found[::3]] == [name for name in BASELINES if name in rows]
    label = effect_of(found, PRUNED, "label right")
    assert (label.before, label.after, label.lost) == (0.7, 0.6, 2)
    assert effect_of(found, PRUNED, "clean accuracy").difference == pytest.approx(0.15)
    assert effect_of(found, CONFIDENCE, "right or flagged").gained == 1
    assert effect_of(found, WIDER, "label right") is None
    assert effect_of(comparisons(rows, FULL["reject"]), PRUNED, "label right").after == 0.3
    assert comparisons({BARE: rows[BARE]}, FULL["correct"]) == ()
