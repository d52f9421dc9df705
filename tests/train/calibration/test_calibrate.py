import math
from dataclasses import fields, replace

import numpy as np
import pytest
from tests.train.correlated_members import correlated_answers, voted

from s2ap_defend.errors import RecipeError
from s2ap_defend.sequential import SequentialTest, run_sequential_test
from s2ap_train.calibration import Answers, Calibration, Detection, alarm_statistic, calibrate
from s2ap_train.calibration.jury import Jury

CLEAN = [0.05, 0.1, 0.15, 0.2, 0.1, 0.1]
FOOLED = [0.7, 0.6, 0.8, 0.7, 0.5, 0.7]


def calibrated(config: Detection, *, clean: list[float] = CLEAN, fooled: list[float] = FOOLED) -> Calibration:
    rng = np.random.default_rng(0)
    return calibrate(
        correlated_answers(rng, 200, clean, wrong=0.05),
        correlated_answers(rng, 300, fooled, fooled=True),
        correlated_answers(rng, 300, clean, wrong=0.05),
        config,
        Jury.behind_classifier(len(clean)),
    )


def binary(disagreeing: list[int], of: int, *, right: bool) -> Answers:
    """Members of which the given numbers of inputs are disagreed with, the first ones."""
    return voted([[j < count for j in range(of)] for count in disagreeing], right=right)


# 39 clean inputs, of which two members disagree with 1 and 3; 39 fooled ones, of which they disagree with 29 and 23:
# smoothed rates 1.5/40, 3.5/40 and 29.5/40, 23.5/40
HAND = {"clean": binary([1, 3], 39, right=True), "attacked": binary([29, 23], 39, right=False)}
HAND_HELD_OUT = binary([1, 2], 60, right=True)


def by_hand(kind: str, **settings: object) -> Calibration:
    config = Detection(**{"kind": kind, "min_accept": 1, **settings})
    return calibrate(HAND["clean"], HAND["attacked"], HAND_HELD_OUT, config, Jury.behind_classifier(2))


def test_weighted_members_weigh_their_own_smoothed_rates() -> None:
    result = by_hand("weighted", alpha=0.2, beta=0.2)
    assert result.order.tolist() == [0, 1]
    assert result.tables.evidence == "margin"
    np.testing.assert_allclose(
        result.tables.increments,
        [
            [math.log((1 - 29.5 / 40) / (1 - 1.5 / 40)), math.log(29.5 / 1.5)],
            [math.log((1 - 23.5 / 40) / (1 - 3.5 / 40)), math.log(23.5 / 3.5)],
        ],
        rtol=1e-12,
    )
    assert result.tables.upper == pytest.approx((math.log(0.8 / 0.2),) * 2)
    assert result.tables.lower == pytest.approx((math.log(0.2 / 0.8),) * 2)
    assert result.tables.truncation == "sign"


@pytest.mark.parametrize(("kind", "upper"), [("wald", math.log(0.8 / 0.2)), ("ville", math.log(1 / 0.2))])
def test_wald_and_ville_share_the_mean_of_the_smoothed_rates(kind: str, upper: float) -> None:
    tables = by_hand(kind, alpha=0.2, beta=0.2).tables
    q0, q1 = (1.5 + 3.5) / 80, (29.5 + 23.5) / 80
    row = [math.log((1 - q1) / (1 - q0)), math.log(q1 / q0)]
    np.testing.assert_allclose(tables.increments, [row, row], rtol=1e-12)
    assert tables.upper == pytest.approx((upper, upper))
    assert tables.lower == pytest.approx((math.log(0.2 / 0.8),) * 2)


def test_the_papers_test_has_its_levels_its_order_and_a_plain_vote() -> None:
    swapped = {name: part.reorder(np.array([1, 0])) for name, part in HAND.items()}
    config = Detection(kind="paper", alpha=0.01, beta=0.2, min_accept=6, truncation="clean")
    result = calibrate(swapped["clean"], swapped["attacked"], HAND_HELD_OUT, config, Jury.behind_classifier(2))
    rates = np.array([2, 1, 1] + [0] * 36) / 2  # of each clean input: member 0 disagrees with one, member 1 with three
    zeta = rates.mean() + 2.58 * rates.std(ddof=1) / math.sqrt(39)
    q0, q1 = 0.9 * zeta, 1.1 * zeta
    np.testing.assert_allclose(
        result.tables.increments, [[math.log((1 - q1) / (1 - q0)), math.log(q1 / q0)]] * 2, rtol=1e-12
    )
    assert result.order.tolist() == [0, 1]  # as trained, although the other member is better
    assert result.tables.upper == pytest.approx((math.log(19),) * 2)
    assert result.tables.lower == pytest.approx((-math.log(19),) * 2)
    assert (result.tables.truncation, result.tables.alpha, result.tables.beta) == ("sign", 0.05, 0.05)
    assert (result.test.answer, result.test.vote_weights.tolist()) == ("accurate", [1.0, 1.0])
    assert result.tables.calibration.samples == 0
    assert result.tables.calibration.false_alarm_bound is None


def test_the_papers_test_takes_a_hundred_members_at_most() -> None:
    many = {name: part.reorder(np.arange(120) % 2) for name, part in HAND.items()}
    held_out = HAND_HELD_OUT.reorder(np.arange(120) % 2)
    result = calibrate(many["clean"], many["attacked"], held_out, Detection(kind="paper"), Jury.behind_classifier(120))
    assert result.order.tolist() == list(range(100))


def test_graded_evidence_in_two_bins_is_weighted_votes() -> None:
    two, weighted = (
        calibrated(replace(Detection(kind="weighted"), kind=kind, bins=2)).tables for kind in ("graded", "weighted")
    )
    assert two.model_dump(exclude={"kind"}) == weighted.model_dump(exclude={"kind"})


def test_conformal_evidence_is_graded_evidence_with_another_alarm_boundary() -> None:
    conformal, graded = (calibrated(Detection(kind=kind, evidence="all")).tables for kind in ("conformal", "graded"))
    assert conformal.increments == graded.increments
    assert conformal.edges == graded.edges
    assert conformal.lower == graded.lower
    assert conformal.upper != graded.upper
    assert (conformal.truncation, graded.truncation) == ("clean", "sign")


def test_a_design_that_cannot_decide_says_how_many_members_could() -> None:
    # one step towards 'clean' is ln((1 - q1) / (1 - q0)) with q0 = 5/80, q1 = 53/80: 1.0217; B = ln(.05/.95) = -2.944
    with pytest.raises(
        RecipeError, match=r"never decide 'clean': 2 members say 2\.04 nats .* 2\.94; it takes 3 members"
    ):
        by_hand("wald")
    assert by_hand("conformal", evidence="all").tables.lower[0] == pytest.approx(-math.log(19))  # truncation decides


def test_members_that_disagree_no_more_with_fooled_inputs_have_no_shared_rates() -> None:
    with pytest.raises(RecipeError, match=r"disagree with 0\.66. of the clean and 0\.66. of the fooled"):
        calibrate(
            binary([29, 23], 39, right=True),
            HAND["attacked"],
            HAND_HELD_OUT,
            Detection(kind="wald", min_accept=1),
            Jury.behind_classifier(2),
        )


def test_evidence_that_most_clean_inputs_reach_flags_nothing_and_is_refused() -> None:
    held_out = binary([30, 30], 60, right=True)
    with pytest.raises(RecipeError, match=r"2 members can say at most .* more than 0\.05 of the clean"):
        calibrate(HAND["clean"], HAND["attacked"], held_out, Detection(min_accept=1, bins=2), Jury.behind_classifier(2))


def test_clean_may_not_be_decided_before_min_accept_members() -> None:
    result = calibrated(Detection(min_accept=4))
    assert result.tables.lower[:3] == (None, None, None)
    assert result.tables.lower[3] is not None
    fresh = correlated_answers(np.random.default_rng(3), 200, CLEAN).reorder(result.order)
    outcome = run_sequential_test(result.test, fresh.said)
    assert (outcome.members_used[~outcome.adversarial] >= 4).all()
    assert (outcome.members_used[~outcome.adversarial] == 4).any()


def test_members_beyond_n_max_are_left_out_and_the_first_of_the_order_stay() -> None:
    every, three = (calibrated(Detection(n_max=n)) for n in (None, 3))
    assert three.order.tolist() == every.order[:3].tolist()
    assert three.tables.increments == every.tables.increments[:3]
    assert sum(three.tables.waves) == 3


def test_calibrating_on_all_counts_the_inputs_that_the_classifier_gets_wrong() -> None:
    correct, both = (calibrated(Detection(calibrate_on=on)).tables.calibration for on in ("correct", "all"))
    assert (correct.on, both.on) == ("correct", "all")
    assert 260 < correct.samples < 300 == both.samples
    assert len(correct.reference_ratios) == len(both.reference_ratios) == 300


def test_reference_ratios_are_those_of_the_test_as_it_is_served() -> None:
    rng = np.random.default_rng(0)
    parts = [
        correlated_answers(rng, 200, CLEAN),
        correlated_answers(rng, 300, FOOLED, fooled=True),
        correlated_answers(rng, 300, CLEAN),
    ]
    result = calibrate(*parts, Detection(), Jury.behind_classifier(parts[0].members))
    held_out = parts[2].reorder(result.order)
    outcome = run_sequential_test(result.test, held_out.said)
    assert outcome.adversarial.any()  # with alarms on: flagged inputs stop there
    assert result.tables.calibration.reference_ratios == tuple(np.sort(outcome.log_likelihood_ratio).tolist())


@pytest.mark.parametrize("kind", ["conformal", "graded", "weighted", "wald", "ville", "paper"])
@pytest.mark.parametrize("truncation", [None, "abstain"])
@pytest.mark.parametrize("correction", ["correct", "reject"])
def test_every_kind_compiles_to_tables_that_run(kind: str, truncation: str | None, correction: str) -> None:
    config = Detection(kind=kind, truncation=truncation, correction=correction, evidence="all")  # type: ignore[arg-type]
    result = calibrated(config)
    assert result.tables.kind.startswith(kind)
    assert result.tables.correction == correction
    fresh = correlated_answers(np.random.default_rng(1), 200, FOOLED, fooled=True).reorder(result.order)
    outcome = run_sequential_test(result.test, fresh.said)
    assert outcome.adversarial.mean() > 0.3
    if correction == "reject":
        assert outcome.abstained[outcome.adversarial].all()


def test_a_test_that_may_abstain_counts_every_member() -> None:
    with pytest.raises(RecipeError, match=r"'abstain' with evidence 'gaining'.*set detection\.evidence = \"all\""):
        Detection(truncation="abstain")
    Detection(truncation="abstain", order="as trained")  # everyone counts there
    Detection(truncation="abstain", kind="graded")
    test = calibrated(Detection(truncation="abstain", evidence="all")).test
    assert (test.increments != 0.0).any(axis=1).all()


@pytest.mark.parametrize("truncation", [None, "clean", "adversarial", "sign", "abstain"])
def test_the_tables_of_the_manifest_are_the_test_that_they_were_made_of(truncation: str | None) -> None:
    made = calibrated(Detection(kind="graded", truncation=truncation, evidence="all"))  # type: ignore[arg-type]
    read = made.tables.to_test(made.test.vote_weights.tolist(), answer="accurate", jury_share=1.0, amplification=1.0)
    for field in fields(read):
        assert np.array_equal(getattr(read, field.name), getattr(made.test, field.name)), field.name


def test_the_alarm_statistic_is_the_largest_ratio_up_to_the_stop() -> None:
    result = calibrated(Detection())
    test = replace(result.test, lower=np.array([-math.inf, -0.5, -0.5, -math.inf, -0.5, -0.5]))
    inputs = correlated_answers(np.random.default_rng(1), 100, [0.3] * 6).reorder(result.order)
    statistics = alarm_statistic(test, inputs)
    stopped_early = 0
    for j in range(100):
        total, largest = 0.0, -math.inf
        for i in range(test.members):
            surprise = np.float32(-inputs.said.members[i, j, inputs.first[j]])
            total += test.increments[i, int((surprise >= test.edges[i]).sum())]
            largest = max(largest, total)
            if total <= test.lower[i]:
                stopped_early += i < 5
                break
        assert statistics[j] == largest
    assert 10 < stopped_early < 90


def test_an_input_exactly_on_the_clean_boundary_stops_there() -> None:
    """Agreement is worth -1, disagreement 5: the path is -1, -2, 3; with the clean boundary at -2 it ends there."""
    test = SequentialTest(
        evidence="margin",
        edges=np.full((3, 1), 1e-4, dtype=np.float32),
        increments=np.tile([-1.0, 5.0], (3, 1)),
        lower=np.full(3, -2.0),
        upper=np.full(3, math.inf),
        final_threshold=math.inf,
        waves=(3,),
        vote_weights=np.ones(3),
        answer="accurate",
    )
    inputs = voted([[False], [False], [True]])
    assert alarm_statistic(test, inputs).tolist() == [-1.0]
    assert alarm_statistic(replace(test, lower=np.full(3, -2.5)), inputs).tolist() == [3.0]


@pytest.mark.parametrize("boundary", [-1.0, 0.5, 2.0, 4.0])
def test_the_test_flags_exactly_the_inputs_whose_statistic_reaches_its_boundary(boundary: float) -> None:
    result = calibrated(Detection(evidence="all"))
    test = replace(result.test, upper=np.full(6, boundary))
    inputs = correlated_answers(np.random.default_rng(2), 300, [0.3] * 6).reorder(result.order)
    flagged = run_sequential_test(test, inputs.said).adversarial
    np.testing.assert_array_equal(flagged, alarm_statistic(test, inputs) >= boundary)
    assert 0 < flagged.sum() < 300


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, "alpha 0 is no false-alarm rate"),
        ({"alpha": math.nan}, "alpha nan is no false-alarm rate"),
        ({"alpha": 0.6, "beta": 0.4}, r"beta 0\.4 is no miss rate with alpha 0\.6"),
        ({"bins": 1}, "detection.bins is 1, expected 2 or more"),
        ({"n_max": 0}, "detection.n_max is 0, expected 1 or more"),
        ({"kind": "sprt"}, "detection.kind 'sprt' is not known; choose from conformal, graded"),
        ({"truncation": "sign"}, "a conformal alpha would not hold"),
        ({"truncation": "adversarial"}, "a conformal alpha would not hold"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Detection(**settings)  # type: ignore[arg-type]


def test_calibration_without_fooled_inputs_is_refused() -> None:
    rng = np.random.default_rng(4)
    inputs = correlated_answers(rng, 50, [0.1])
    with pytest.raises(RecipeError, match="20 attacked ones that are answered wrong, got 50 and 0"):
        calibrate(inputs, inputs, inputs, Detection(), Jury.behind_classifier(inputs.members))
