"""From what the members said of fitting and held-out inputs to the tables of the sequential test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from s2ap_defend.errors import RecipeError
from s2ap_defend.manifest import CalibrationRecord, TestTables
from s2ap_defend.sequential import SequentialTest, run_sequential_test
from s2ap_defend.types import Float64, Int64
from s2ap_train.calibration.answers import Answers
from s2ap_train.calibration.boundaries import (
    alarm_statistic,
    check_alarm_possible,
    check_decidable,
    closed_when_nothing_follows,
    conformal_boundary,
    false_alarms,
)
from s2ap_train.calibration.correlation import member_correlation
from s2ap_train.calibration.evidence import cross_fitted_evidence, fit_signals
from s2ap_train.calibration.jury import Jury
from s2ap_train.calibration.kinds import (
    NO_EVIDENCE,
    evidence_bins,
    kind_name,
    member_tables,
    rules,
    sequential_test,
    silent_tables,
)
from s2ap_train.calibration.ordering import gaining_members, greedy_order
from s2ap_train.calibration.possible import able, affordable_alpha, has_evidence, without_kind
from s2ap_train.calibration.settings import CalibrateOn, Detection
from s2ap_train.calibration.weakness import OnWeakness, refuse


@dataclass(frozen=True)
class Calibration:
    """The result: which member is asked when, and the tables in that order.

    Attributes:
        order: Index of the member that is asked first, second, ... [n]; members beyond `n_max` are not among them.
        test: The decision, members in that order.
        tables: Its numbers for the manifest, without what the manifest says elsewhere: weights and answer.
        clean_disagreement_rates: q0 of each member in the asked order [n].
        adversarial_disagreement_rates: q1 of each member in the asked order [n].
    """

    order: Int64
    test: SequentialTest
    tables: TestTables
    clean_disagreement_rates: Float64
    adversarial_disagreement_rates: Float64


def calibrate(
    clean: Answers,
    attacked: Answers,
    held_out: Answers,
    config: Detection,
    jury: Jury,
    *,
    costs: Sequence[float] | None = None,
    weak: OnWeakness = refuse,
) -> Calibration:
    """Fit order, bins and increments on `clean` and `attacked`, and the alarm boundary on `held_out`.

    Order and increments are fitted on the same images; the order on evidence from tables that the image did not fit
    (`cross_fitted_evidence`). Nothing but the conformal boundary sees `held_out`, so under kind 'conformal' the
    false-alarm rate on inputs exchangeable with it is at most alpha, however the members are correlated. It says
    nothing about the detection of attacks that were not measured.

    Where `weak` does not raise, what these answers do not allow is left out: without evidence nothing is flagged,
    shared rates that are none become graded evidence, an alpha that so few images cannot keep is raised as far as
    `MOST_RAISED`, and a boundary that nothing reaches stays. Answers are always given.

    Args:
        clean: Clean inputs of the fitting split, members as they were trained; those whose first answer is right count.
        attacked: Attacked inputs; those whose first answer is wrong count.
        held_out: Clean inputs that fitted nothing.
        config: Settings.
        jury: Who answers, and who is asked first.
        costs: Cost of every member in any one unit, such as milliseconds; None counts each as one.
        weak: Called if too few inputs are left to fit or to reach alpha, or the test could never decide.

    Raises:
        RecipeError: If `weak` does.
    """
    clean, attacked, held_out = (jury.measured(part) for part in (clean, attacked, held_out))
    right, fooled = clean.keep(clean.right), attacked.keep(~attacked.right)
    if len(jury.vote_weights) != clean.members:
        raise RecipeError(f"the jury has {len(jury.vote_weights)} vote weights for {clean.members} members")
    counted = counted_inputs(held_out, config.calibrate_on)
    evident = has_evidence(right, fooled, weak)
    config = able(config, right, fooled, weak) if evident else without_kind(config)
    alpha = affordable_alpha(config, len(counted), weak) if evident else None
    config = config if alpha is None else replace(config, alpha=alpha)
    asked = jury.asked
    fixed = rules(config, len(asked))
    order, witnesses = jury.order(asked), len(asked)
    if evident and config.order == "greedy" and config.kind != "paper":
        evidence = cross_fitted_evidence(right, fooled, evidence_bins(config))
        paid = None if costs is None else [costs[i] for i in asked]
        ranked = greedy_order(evidence[0][asked], evidence[1][asked], paid)
        order = jury.order([asked[i] for i in ranked.tolist()])
        if config.chooses_witnesses:
            gaining = gaining_members(evidence[0][order], evidence[1][order])
            witnesses = max(gaining, config.min_accept, len(jury.opening))
    order = order[: fixed.members]
    held_out, counted, right, fooled = (part.reorder(order) for part in (held_out, counted, right, fooled))
    tables = member_tables(config, right, fooled) if evident else silent_tables(config, len(order))
    test = sequential_test(config, fixed, tables.only_of(witnesses), jury, jury.weights_in(order))
    test = fit_signals(test, jury.signals if evident else (), right, fooled)
    if config.kind == "conformal":
        if alpha is not None:
            test = with_conformal_boundary(test, alarm_statistic(test, counted), alpha, weak)
        test = closed_when_nothing_follows(test, max(fixed.min_accept, test.opening))
    elif config.kind != "paper":
        check_decidable(test, weak)
    promised = alpha if config.kind == "conformal" else None
    return Calibration(
        order=order,
        test=test,
        tables=to_tables(
            test,
            kind=kind_name(config) if evident else NO_EVIDENCE,
            truncation=config.final_rule,
            alpha=fixed.alpha,
            beta=fixed.beta,
            record=calibration_record(test, held_out, config.calibrate_on, alpha=promised),
        ),
        clean_disagreement_rates=right.disagreement_rates,
        adversarial_disagreement_rates=fooled.disagreement_rates,
    )


def counted_inputs(held_out: Answers, on: CalibrateOn) -> Answers:
    """The inputs that the false-alarm rate counts: those whose first answer is right, or all."""
    return held_out.keep(held_out.right) if on == "correct" else held_out


def with_conformal_boundary(
    test: SequentialTest, statistics: Float64, alpha: float, weak: OnWeakness = refuse
) -> SequentialTest:
    """The test with the conformal alarm boundary of its own lower boundary and members.

    A boundary that would lie below the clean boundary, where more evidence would be asked for than decided on, is
    raised to it: that flags fewer inputs.

    Args:
        test: Without an alarm boundary.
        statistics: Its alarm statistics of the calibration inputs that count [n].
        alpha: False-alarm rate.
        weak: Called if no boundary that keeps alpha flags anything.

    Raises:
        RecipeError: If there are too few inputs for alpha, or `weak` does.
    """
    boundary = conformal_boundary(statistics, alpha)
    finite = test.lower[np.isfinite(test.lower)]
    if len(finite):  # two floats above it: the one between is the mark of a closed boundary, see `without_closing`
        boundary = max(boundary, float(np.nextafter(np.nextafter(finite.max(), math.inf), math.inf)))
    decides = np.arange(1, test.members + 1) >= test.opening
    bounded = replace(test, upper=np.where(decides, boundary, math.inf))
    check_alarm_possible(bounded, statistics, alpha, weak)
    return bounded


def calibration_record(
    test: SequentialTest, held_out: Answers, on: CalibrateOn, *, alpha: float | None
) -> CalibrationRecord:
    """What the manifest says of a calibration.

    Args:
        test: The final test.
        held_out: All held-out clean inputs.
        on: Which of them the false-alarm rate counts.
        alpha: Rate that the boundary was calibrated for; None where it was not, and nothing is promised.
    """
    counted = counted_inputs(held_out, on)
    promised = None if alpha is None else false_alarms(len(counted), alpha)
    correlation = member_correlation(counted.disagreements)
    served = run_sequential_test(test, held_out.said)
    return CalibrationRecord(
        on=on,
        samples=len(counted) if promised else 0,
        expected_false_alarm_rate=promised.expected if promised else None,
        false_alarm_bound=promised.bound if promised else None,
        correlation=correlation.phi,
        effective_members=correlation.effective_members,
        reference_ratios=tuple(np.sort(served.log_likelihood_ratio).tolist()),
    )


def to_tables(
    test: SequentialTest, *, kind: str, truncation: str, alpha: float, beta: float, record: CalibrationRecord
) -> TestTables:
    """The test as the manifest writes it."""
    return TestTables.model_validate(
        {
            "kind": kind,
            "evidence": test.evidence,
            "edges": test.edges.astype(float).tolist(),
            "increments": test.increments.tolist(),
            "lower": finite_or_none(test.lower),
            "upper": finite_or_none(test.upper),
            "truncation": truncation,
            "correction": test.correction,
            "curtailed": test.curtail,
            "opening": test.opening,
            "await_vote": test.await_vote,
            "signals": [
                {"name": one.name, "edges": one.edges.astype(float).tolist(), "increments": one.increments.tolist()}
                for one in test.signals
            ],
            "waves": test.waves,
            "alpha": alpha,
            "beta": beta,
            "calibration": record,
        }
    )


def finite_or_none(boundary: Float64) -> list[float | None]:
    """A boundary as the manifest writes it: None where it is never crossed."""
    return [value if math.isfinite(value) else None for value in boundary.tolist()]
