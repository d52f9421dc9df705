"""A new conformal alarm boundary for an existing test, and what it promises."""

import math
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto, numpy_helper

from s2ap_defend.decision_record import DecisionDescription
from s2ap_defend.errors import ModelFileError, RecipeError
from s2ap_defend.manifest import CalibrationRecord, Manifest, TestTables
from s2ap_defend.sequential import SequentialTest, run_sequential_test
from s2ap_defend.sequential.wald import ville_boundary
from s2ap_defend.types import Float64
from s2ap_train.calibration import Answers, alarm_statistic, conformal_boundary, member_correlation, samples_needed
from s2ap_train.calibration.boundaries import closed_when_nothing_follows, lower_boundaries, without_closing
from s2ap_train.calibration.calibration import (
    calibration_record,
    counted_inputs,
    finite_or_none,
    with_conformal_boundary,
)
from s2ap_train.calibration.settings import CalibrateOn, check_alpha
from s2ap_train.statistics.figures import clopper_pearson

FOLDS = 10
_FOLD_SEED = 0


@dataclass(frozen=True)
class Recalibration:
    """The new tables, and figures of old and new on the same clean inputs; rates are shares of the counted inputs.

    Attributes:
        test: The decision with its new boundaries.
        tables: Its numbers for the manifest.
        inputs: Clean inputs, counted or not.
        first_accuracy: Share of them whose first answer is right; None without labels.
        old_boundary: Largest alarm boundary before, nats; None where it was never crossed.
        new_boundary: Alarm boundary now, nats.
        old_alpha: What the old boundary was for.
        old_rate: False-alarm rate of the old test.
        old_rate_interval: Its 95 % interval (Clopper and Pearson).
        cross_validated_rate: Share flagged by boundaries from the other folds; None where those would be too few for
            alpha.
        flagged: Share of all inputs that the new test flags, those that are answered wrong included.
        abstained: Share of all inputs that the new test gives no answer; None where the file always answers.
        members_used: Members asked of one of all inputs, mean.
        left_out: Members without any variation in their disagreements, not in the correlation.
    """

    test: SequentialTest
    tables: TestTables
    inputs: int
    first_accuracy: float | None
    old_boundary: float | None
    new_boundary: float
    old_alpha: float
    old_rate: float
    old_rate_interval: tuple[float, float]
    cross_validated_rate: float | None
    flagged: float
    abstained: float | None
    members_used: float
    left_out: int

    @property
    def record(self) -> CalibrationRecord:
        """What the manifest says of the calibration."""
        return self.tables.calibration


def recalibrate(
    old: TestTables,
    test: SequentialTest,
    answers: Answers,
    *,
    alpha: float,
    on: CalibrateOn,
    min_accept: int | None = None,
    labelled: bool = True,
) -> Recalibration:
    """Give a test the conformal alarm boundary of new clean inputs; evidence, order, votes and beta stay.

    A test of another kind becomes conformal in its alarm boundary. Where its truncation would flag undecided inputs,
    the clean boundary of the last member is raised to just below the alarm boundary: nothing is left undecided
    (`closed_when_nothing_follows`). The clean boundary below it stays what the file had; where none is left of it,
    it is ln(beta), whatever alphas the file went through.

    Args:
        old: Tables of the file.
        test: The decision that they are part of; its answer may be another than the file's.
        answers: What its stages say of clean inputs that they were not made with.
        alpha: False-alarm rate.
        on: Which inputs it counts.
        min_accept: Members before 'clean' may be decided; None keeps the file's.
        labelled: Whether the answers' labels are true ones.

    Raises:
        RecipeError: If a setting cannot work or there are too few inputs for alpha.
    """
    check_alpha(alpha)
    if alpha + old.beta >= 1.0:
        raise RecipeError(
            f"alpha {alpha:g} and the file's miss rate beta {old.beta:g} make one or more together; give an alpha "
            f"below {1.0 - old.beta:g}"
        )
    answers = answers.measured_by(test)
    counted = counted_inputs(answers, on)
    if len(counted) < samples_needed(alpha):
        which = " that are answered right" if on == "correct" else ""
        raise RecipeError(
            f"a false-alarm rate of {alpha:g} needs {samples_needed(alpha)} clean inputs{which} or more, got "
            f"{len(counted)} of {len(answers)}; give more images or a larger alpha"
        )
    accept = _first_acceptance(test) if min_accept is None else min_accept
    bounded = replace(test, lower=_lower(old, test, min_accept), upper=np.full(test.members, math.inf))
    statistics = alarm_statistic(bounded, counted)
    bounded = with_conformal_boundary(bounded, statistics, alpha)
    bounded = closed_when_nothing_follows(bounded, accept)
    before = run_sequential_test(test, counted.said).adversarial
    after = run_sequential_test(bounded, answers.said)
    finite = test.upper[np.isfinite(test.upper)]
    return Recalibration(
        test=bounded,
        tables=TestTables.model_validate(
            {
                **old.model_dump(),
                "kind": _kind(old.kind),
                "lower": finite_or_none(bounded.lower),
                "upper": finite_or_none(bounded.upper),
                "await_vote": bounded.await_vote,
                "alpha": alpha,
                "calibration": calibration_record(bounded, answers, on, alpha=alpha),
            }
        ),
        inputs=len(answers),
        first_accuracy=float(answers.right.mean()) if labelled else None,
        old_boundary=float(finite.max()) if len(finite) else None,
        new_boundary=float(bounded.upper[-1]),
        old_alpha=old.alpha,
        old_rate=float(before.mean()),
        old_rate_interval=clopper_pearson(int(before.sum()), len(before)),
        cross_validated_rate=cross_validated_rate(statistics, alpha),
        flagged=float(after.adversarial.mean()),
        abstained=float(after.abstained.mean()) if test.undecided_abstains or test.correction == "reject" else None,
        members_used=float(after.members_used.mean()),
        left_out=member_correlation(counted.disagreements).left_out,
    )


def cross_validated_rate(statistics: Float64, alpha: float) -> float | None:
    """Share of the inputs that the boundary of the other folds flags, in ten folds at random.

    More folds where nine tenths are too few for alpha; None where all but one are.

    Args:
        statistics: Alarm statistics [n].
        alpha: False-alarm rate.
    """
    count, needed = len(statistics), samples_needed(alpha)
    folds = min(FOLDS, count) if count - math.ceil(count / FOLDS) >= needed else count
    if count - math.ceil(count / folds) < needed:
        return None
    rows = np.random.default_rng(_FOLD_SEED).permutation(count)
    flagged = 0
    for held in np.array_split(rows, folds):
        boundary = conformal_boundary(np.delete(statistics, held), alpha)
        flagged += int((statistics[held] >= boundary).sum())
    return flagged / count


def recalibrated_model(proto: ModelProto, test: SequentialTest) -> ModelProto:
    """The model with the boundaries of a test in its graph; everything else is the same.

    Raises:
        ModelFileError: If the graph does not have the boundaries as initialisers.
    """
    model = ModelProto()
    model.CopyFrom(proto)
    for name in ("lower", "upper"):
        tensors = [tensor for tensor in model.graph.initializer if tensor.name == f"test/{name}"]
        if len(tensors) != 1:
            raise ModelFileError(f"the graph has {len(tensors)} initialisers test/{name}, expected 1; export it again")
        tensors[0].CopyFrom(numpy_helper.from_array(getattr(test, name), f"test/{name}"))
    return model


def recalibrated_manifest(manifest: Manifest, tables: TestTables, decision: DecisionDescription) -> Manifest:
    """The manifest with new tables and decision, without figures and weaknesses of the old ones."""
    gone = {"boundary"} if decision.answer == manifest.decision.answer else {"boundary", "answer"}
    weaknesses = tuple(one for one in manifest.weaknesses if one.part not in gone)
    precision = manifest.precision
    if precision is not None:
        precision = precision.model_copy(update={"comparison": None})
    new = {"test": tables, "decision": decision, "measured": (), "weaknesses": weaknesses, "precision": precision}
    return manifest.model_copy(update=new)


def _first_acceptance(test: SequentialTest) -> int:
    """Members before the file decides 'clean'."""
    finite = np.flatnonzero(np.isfinite(test.lower))
    return int(finite[0]) + 1 if len(finite) else test.members


def _lower(tables: TestTables, test: SequentialTest, min_accept: int | None) -> Float64:
    """The clean boundaries as they were before they were closed, moved to another `min_accept` if one is given."""
    lower = without_closing(test)
    if min_accept is None and np.array_equal(lower, test.lower):
        return lower
    accept = _first_acceptance(test) if min_accept is None else min_accept
    if not test.opening <= accept <= test.members:
        raise RecipeError(
            f"--min-accept is {accept}, the file has {test.members} members, of which {test.opening} open; give a "
            f"number from {test.opening} to {test.members}"
        )
    usual = lower[np.isfinite(lower)]
    moved = lower_boundaries(float(usual[0]) if len(usual) else _lost_lower(tables), test.members, accept)
    return np.where(np.isfinite(lower) & np.isfinite(moved), lower, moved)


def _lost_lower(tables: TestTables) -> float:
    """The clean boundary of a file that has none left: ln(beta).

    Independent votes cross it under 'adversarial' with probability beta at most (Ville 1939), whatever the alarm
    boundary: it is Wald's for alpha 0, a little below that of any other, and knows nothing of earlier calibrations.
    """
    if tables.beta == 0.0:
        raise RecipeError("the file has no clean boundary of its own, and its beta 0 gives none; export it again")
    return -ville_boundary(tables.beta)


def _kind(old: str) -> str:
    if "conformal alarm boundary" in old:
        return old
    return f"{old}; then: conformal alarm boundary"
