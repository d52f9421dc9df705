import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.train.correlated_members import correlated_answers

from s2ap_defend.manifest import read_manifest
from s2ap_defend.model_file import open_model_file
from s2ap_defend.precision_record import PrecisionComparison, PrecisionFigures, PrecisionRecord
from s2ap_defend.sequential import run_sequential_test
from s2ap_export.commands.calibrate.recalibration import cross_validated_rate, recalibrate, recalibrated_manifest
from s2ap_train.calibration import Detection, Jury, calibrate

JURY = Jury.behind_classifier(6)
RATES, FOOLED = [0.05, 0.1, 0.15, 0.2, 0.1, 0.1], [0.7] * 6


def test_what_precision_changed_under_the_old_boundary_is_dropped_and_the_precision_stays(
    tiny_model_path: Path,
) -> None:
    manifest = open_model_file(tiny_model_path).manifest
    figures = PrecisionFigures(
        clean_accuracy=0.9, clean_flagged=0.05, label_accuracy=0.5, robust_accuracy=0.6, size_bytes=1000
    )
    comparison = PrecisionComparison(
        split="validation",
        samples=100,
        label_flips=1,
        flag_flips=0,
        attack="some",
        attacked_samples=10,
        reduced=figures,
        float32=figures,
    )
    reduced = manifest.model_copy(update={"precision": PrecisionRecord(classifier="float16", comparison=comparison)})
    assert recalibrated_manifest(manifest, manifest.test, manifest.decision).precision is None
    new = recalibrated_manifest(reduced, manifest.test, manifest.decision).precision
    assert new == PrecisionRecord(classifier="float16", comparison=None)
    assert read_manifest(reduced.to_json(), source="x") == reduced
    for changes in ({"label_flips": 101}, {"reduced": figures.model_dump() | {"label_accuracy": 0.7}}):
        with pytest.raises(ValueError, match=r"flips of 100 images|exceeds robust_accuracy"):
            PrecisionComparison.model_validate(comparison.model_dump() | changes)


@pytest.mark.parametrize("kind", ["conformal", "graded", "weighted", "wald", "ville", "paper"])
def test_every_kind_becomes_conformal_in_its_alarm_boundary_and_keeps_alpha(kind: str) -> None:
    rng = np.random.default_rng(5)
    fit = correlated_answers(rng, 300, RATES), correlated_answers(rng, 300, FOOLED, fooled=True)
    config = Detection(kind=kind, alpha=0.05)  # type: ignore[arg-type]
    made = calibrate(*fit, correlated_answers(rng, 300, RATES), config, JURY)
    rates = []
    for _ in range(20):
        answers = correlated_answers(rng, 300, RATES).reorder(made.order)
        new = recalibrate(made.tables, made.test, answers, alpha=0.1, on="correct")
        assert "conformal alarm boundary" in new.tables.kind
        assert new.tables.kind.startswith(kind)
        assert new.tables.truncation == made.tables.truncation
        fresh = correlated_answers(rng, 1000, RATES).reorder(made.order)
        outcome = run_sequential_test(new.test, fresh.said)
        rates.append(outcome.adversarial.mean())
        assert outcome.adversarial.any()
    assert np.mean(rates) <= 0.1 + 3 * math.sqrt(0.09 * (1 / 302 + 1 / 1000) / 20)


def test_calibrating_on_the_same_inputs_gives_the_same_boundary() -> None:
    rng = np.random.default_rng(6)
    fit = correlated_answers(rng, 300, RATES), correlated_answers(rng, 300, FOOLED, fooled=True)
    held_out = correlated_answers(rng, 300, RATES, wrong=0.1)
    made = calibrate(*fit, held_out, Detection(alpha=0.05), JURY)
    again = recalibrate(made.tables, made.test, held_out.reorder(made.order), alpha=0.05, on="correct")
    assert again.tables == made.tables
    assert again.old_rate == pytest.approx(again.cross_validated_rate, abs=0.02)
    assert again.first_accuracy == pytest.approx(held_out.right.mean())


def test_an_abstaining_test_goes_on_abstaining() -> None:
    rng = np.random.default_rng(6)
    fit = correlated_answers(rng, 300, RATES), correlated_answers(rng, 300, FOOLED, fooled=True)
    made = calibrate(*fit, correlated_answers(rng, 300, RATES), Detection(truncation="abstain", evidence="all"), JURY)
    inputs = correlated_answers(rng, 300, [0.3] * 6).reorder(made.order)
    new = recalibrate(made.tables, made.test, inputs, alpha=0.05, on="all")
    outcome = run_sequential_test(new.test, inputs.said)
    assert outcome.abstained.any()
    assert not (outcome.abstained & outcome.adversarial).any()


@pytest.mark.parametrize("settings", [{}, {"min_accept": 5}, {"kind": "wald"}])
@pytest.mark.parametrize("between", [0.3, 0.9])
def test_boundaries_do_not_depend_on_the_alphas_of_earlier_calibrations(
    settings: dict[str, Any], between: float
) -> None:
    rng = np.random.default_rng(5)
    fit = correlated_answers(rng, 300, RATES), correlated_answers(rng, 300, FOOLED, fooled=True)
    made = calibrate(*fit, correlated_answers(rng, 300, RATES), Detection(**settings), JURY)
    inputs = correlated_answers(rng, 300, RATES).reorder(made.order)
    detour = recalibrate(made.tables, made.test, inputs, alpha=between, on="all")
    for accept in (None, 1, 2):
        direct, after = (
            recalibrate(start.tables, start.test, inputs, alpha=0.05, on="all", min_accept=accept).tables
            for start in (made, detour)
        )
        assert (after.lower, after.upper) == (direct.lower, direct.upper)


def test_a_clean_boundary_that_is_lost_is_that_of_beta_alone() -> None:
    rng = np.random.default_rng(5)
    fit = correlated_answers(rng, 300, RATES), correlated_answers(rng, 300, FOOLED, fooled=True)
    made = calibrate(*fit, correlated_answers(rng, 300, RATES), Detection(beta=0.1, min_accept=5), JURY)
    inputs = correlated_answers(rng, 300, RATES).reorder(made.order)
    assert made.tables.lower[:4] == (None,) * 4  # five members say something: Wald's boundary is nowhere
    new = recalibrate(made.tables, made.test, inputs, alpha=0.05, on="all", min_accept=2).tables
    assert new.lower[:2] == (None, pytest.approx(math.log(0.1)))


def test_the_cross_validated_rate_by_hand() -> None:
    """Twenty inputs in ten folds of two: of 18 others the .5 boundary is their ceil(.5 * 19) = 10th smallest.

    Of the values 1 to 20, those up to 9 have ten or more others below or at 10 or 11, so are never flagged; from 12 on
    all are; 10 and 11 depend on whether their fold leaves the 10th smallest at 10 or 11 below them.
    """
    rate = cross_validated_rate(np.arange(1.0, 21.0), 0.5)
    assert rate is not None
    assert 9 <= round(rate * 20) <= 10
    assert cross_validated_rate(np.arange(19.0), 0.05) is None  # all but one are 18, too few for .05
    assert cross_validated_rate(np.arange(20.0), 0.05) == pytest.approx(1 / 20)  # the largest exceeds all others
    assert cross_validated_rate(np.zeros(40), 0.1) == 0.0


def test_labels_unknown_to_the_caller_are_not_reported_as_accuracy() -> None:
    rng = np.random.default_rng(6)
    fit = correlated_answers(rng, 100, RATES), correlated_answers(rng, 100, FOOLED, fooled=True)
    made = calibrate(*fit, correlated_answers(rng, 100, RATES), Detection(alpha=0.1), JURY)
    inputs = replace(correlated_answers(rng, 100, RATES)).reorder(made.order)
    assert recalibrate(made.tables, made.test, inputs, alpha=0.1, on="all", labelled=False).first_accuracy is None
