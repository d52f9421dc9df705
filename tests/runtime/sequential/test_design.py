"""The exact operating characteristic against the loop that serves, the theorems and numbers worked by hand."""

import itertools
import math

import numpy as np
import pytest
from tests.runtime.designs import DESIGNS

from s2ap_defend.errors import RecipeError
from s2ap_defend.sequential import (
    SequentialOutcome,
    SequentialTest,
    StageAnswers,
    binary_tables,
    run_sequential_test,
    wald_boundaries,
)
from s2ap_defend.sequential.approximations import wald_bounds, wald_exponent
from s2ap_defend.sequential.design import Design, Shortest, check_feasible, operating_characteristic, shortest
from s2ap_defend.sequential.reachable import OperatingPoint, operating_point


def run_votes(test: SequentialTest, disagrees: np.ndarray) -> SequentialOutcome:
    """The loop on inputs [N] of label 0 whose members [n, N] disagree or not."""
    spread = np.where(disagrees[..., None], [0.1, 0.9], [0.9, 0.1])
    members = np.log(spread).astype(np.float32)
    classifier = np.log(np.tile([0.9, 0.1], (disagrees.shape[1], 1))).astype(np.float32)
    return run_sequential_test(test, StageAnswers(classifier, members))


def enumerate_votes(test: SequentialTest, rates: np.ndarray) -> OperatingPoint:
    """The operating point as a sum over all 2^n vote sequences, each decided by the loop."""
    votes = np.array(list(itertools.product([False, True], repeat=test.members))).T
    weights = np.prod(np.where(votes, rates[:, None], 1.0 - rates[:, None]), axis=0)
    outcome = run_votes(test, votes)
    used = outcome.members_used
    undecided = np.zeros(len(used), dtype=bool)
    if test.undecided_abstains:
        undecided = outcome.abstained & ~outcome.adversarial
    last = outcome.log_likelihood_ratio
    truncated = (used == test.members) & (last < test.upper[-1]) & (last > test.lower[-1])
    return OperatingPoint(
        adversarial=weights @ outcome.adversarial,
        clean=weights @ (~outcome.adversarial & ~undecided),
        undecided=weights @ undecided,
        truncated=weights @ truncated,
        mean_members=weights @ used,
    )


def assert_same(found: OperatingPoint, expected: OperatingPoint) -> None:
    for name in ("adversarial", "clean", "undecided", "truncated", "mean_members"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9, abs=1e-11), name


def test_the_design_of_the_specification_has_its_numbers() -> None:
    design = Design(0.05, 0.6)
    clean, adversarial = (operating_characteristic(design, p) for p in (0.05, 0.6))
    assert clean.adversarial == pytest.approx(0.0169, abs=5e-5)
    assert adversarial.adversarial == pytest.approx(0.9697, abs=5e-5)
    assert clean.mean_members == pytest.approx(4.82, abs=5e-3)
    assert adversarial.mean_members == pytest.approx(3.54, abs=5e-3)


def test_two_members_give_what_a_tree_on_paper_gives() -> None:
    # u = ln 3, v = -ln 2, A = ln 7/3 = -B: d flags, aa (-ln 4) accepts, ad (ln 1.5) is truncated, its sign flags.
    design = Design(0.2, 0.6, alpha=0.3, beta=0.3, n_max=2)
    found = operating_characteristic(design, 0.3)
    assert found.clean == pytest.approx(0.49)
    assert found.adversarial == pytest.approx(0.3 + 0.21)
    assert found.truncated == pytest.approx(0.21)
    assert found.mean_members == pytest.approx(0.3 * 1 + 0.7 * 2)
    assert shortest(design) == Shortest(clean=2, adversarial=1)


def test_the_papers_setting_asks_all_members_of_clean_inputs() -> None:
    paper = Design(0.045, 0.055, n_max=100)
    for p in (0.0, 0.01, 0.05):
        assert operating_characteristic(paper, p).mean_members == pytest.approx(100.0, abs=1e-4)
    found = operating_characteristic(paper, 0.6)
    assert found.mean_members == pytest.approx(26.3, abs=0.05)
    assert operating_characteristic(paper, 0.01).truncated == pytest.approx(1.0)


def test_the_papers_setting_needs_280_agreeing_members() -> None:
    assert shortest(Design(0.045, 0.055)).clean == 280
    with pytest.raises(RecipeError, match=r"'clean' takes 280 agreeing members .* n_max is 100; .* is 280"):
        check_feasible(Design(0.045, 0.055, n_max=100))
    check_feasible(Design(0.045, 0.055, n_max=280))


def test_the_papers_setting_with_100_members_can_accept_only_from_zeta_128_on() -> None:
    # 100 ln((1 - 1.1 zeta) / (1 - .9 zeta)) = B = -ln 19, solved for zeta: .1283, about .130.
    step = 19.0 ** (-1 / 100)
    least = (1.0 - step) / (1.1 - 0.9 * step)
    assert least == pytest.approx(0.1283, abs=5e-5)
    for zeta, feasible in ((least - 1e-4, False), (least + 1e-4, True), (0.130, True)):
        assert (shortest(Design(0.9 * zeta, 1.1 * zeta)).clean <= 100) == feasible


@pytest.mark.parametrize("design", DESIGNS, ids=str)
@pytest.mark.parametrize("p", [0.0, 0.05, 0.5, 0.83, 1.0])
def test_every_vote_sequence_is_decided_as_the_loop_decides_it(design: Design, p: float) -> None:
    short = Design(**{**vars_of(design), "n_max": min(design.n_max, 12)})
    expected = enumerate_votes(short.test(), np.full(short.n_max, p))
    assert_same(operating_characteristic(short, p), expected)
    assert_same(operating_point(short.test(), np.tile((1.0 - p, p), (short.n_max, 1))), expected)


def test_members_with_levels_of_their_own_are_exact_too() -> None:
    rng = np.random.default_rng(3)
    clean = rng.uniform(0.02, 0.3, 11)
    rates = rng.uniform(0.0, 1.0, 11)
    rates[0] = 0.0
    edges, increments = binary_tables(clean, clean + 0.3)
    lower, upper = wald_boundaries(0.1, 0.1)
    test = SequentialTest(
        evidence="margin",
        edges=edges,
        increments=increments,
        lower=np.where(np.arange(11) < 3, -math.inf, lower),
        upper=np.full(11, upper),
        final_threshold=0.0,
        waves=(4, 7),
        vote_weights=np.zeros(11),
        answer="accurate",
        correction="reject",
    )
    found = operating_point(test, np.stack([1.0 - rates, rates], axis=1))
    assert_same(found, enumerate_votes(test, rates))


def test_more_than_two_bins_are_exact_too() -> None:
    # Bins with probabilities .5, .3, .2 and increments -1, 0, 2; A = 2, B = -2; two members, truncated as clean.
    test = SequentialTest(
        evidence="surprise",
        edges=np.array([[1.0, 2.0]] * 2, dtype=np.float32),
        increments=np.array([[-1.0, 0.0, 2.0]] * 2),
        lower=np.full(2, -2.0),
        upper=np.full(2, 2.0),
        final_threshold=math.inf,
        waves=(2,),
        vote_weights=np.zeros(2),
        answer="accurate",
        correction="reject",
    )
    found = operating_point(test, np.array([[0.5, 0.3, 0.2]] * 2))
    # Stopped by member 1: .2. Sums after two: -2 (.25, clean), 1 (.1), -1 (.3), 0 (.09), 2 (.06, adversarial).
    assert found.adversarial == pytest.approx(0.26)
    assert found.truncated == pytest.approx(0.49)
    assert found.clean == pytest.approx(0.74)
    assert found.mean_members == pytest.approx(1.8)


def test_too_many_unlike_members_are_refused_with_one_line() -> None:
    levels = np.linspace(0.2, 0.21, 24) ** 1.01
    edges, increments = binary_tables(levels, levels + 0.05)
    test = SequentialTest(
        evidence="margin",
        edges=edges,
        increments=increments,
        lower=np.full(24, -50.0),
        upper=np.full(24, 50.0),
        final_threshold=0.0,
        waves=(24,),
        vote_weights=np.zeros(24),
        answer="accurate",
        correction="reject",
    )
    with pytest.raises(RecipeError, match="undecided after 19 of 24 members"):
        operating_point(test, np.full((24, 2), 0.5))


@pytest.mark.parametrize("design", DESIGNS[:5], ids=str)
@pytest.mark.parametrize("p", [0.1, 0.45])
def test_monte_carlo_agrees_within_three_standard_errors(design: Design, p: float) -> None:
    count = 20_000
    rng = np.random.default_rng(17)
    outcome = run_votes(design.test(), rng.random((design.n_max, count)) < p)
    exact = operating_characteristic(design, p)
    spread = math.sqrt(exact.adversarial * (1.0 - exact.adversarial) / count)
    assert abs(outcome.adversarial.mean() - exact.adversarial) <= 3.0 * spread + 1e-12
    used = outcome.members_used
    assert abs(used.mean() - exact.mean_members) <= 3.0 * used.std() / math.sqrt(count) + 1e-9


@pytest.mark.parametrize("boundary", ["wald", "ville"])
@pytest.mark.parametrize(("q0", "q1"), [(0.05, 0.6), (0.2, 0.3), (0.4, 0.6), (0.01, 0.99)])
@pytest.mark.parametrize("min_accept", [1, 6])
def test_crossing_rates_stay_below_the_bounds_at_any_number_of_members(boundary, q0, q1, min_accept) -> None:
    for n_max in (1, 2, 7, 24, 150):
        design = Design(q0, q1, 0.1, 0.05, n_max, min_accept=min_accept, boundary=boundary, truncation="abstain")
        false_alarm, miss = wald_bounds(design)
        assert operating_characteristic(design, q0).adversarial <= false_alarm * (1.0 + 1e-12)
        assert operating_characteristic(design, q1).clean <= miss * (1.0 + 1e-12)
        assert false_alarm == pytest.approx(0.1 if boundary == "ville" else 0.1 / 0.95)
        assert miss == pytest.approx(0.05 / 0.9)


def test_false_alarms_never_fall_when_an_input_looks_more_adversarial() -> None:
    for truncation in ("sign", "clean", "adversarial", "abstain"):
        design = Design(0.1, 0.4, n_max=9, truncation=truncation)
        rates = [operating_characteristic(design, p).adversarial for p in np.linspace(0.0, 1.0, 21)]
        assert (np.diff(rates) >= -1e-12).all()


def test_truncation_moves_the_undecided_inputs_only() -> None:
    points = {
        rule: operating_characteristic(Design(0.2, 0.3, n_max=8, truncation=rule), 0.25)
        for rule in ("sign", "clean", "adversarial", "abstain")
    }
    truncated = points["clean"].truncated
    assert truncated > 0.5
    assert {point.truncated for point in points.values()} == {truncated}
    assert points["adversarial"].adversarial - points["clean"].adversarial == pytest.approx(truncated)
    assert points["abstain"].undecided == truncated
    assert points["abstain"].adversarial == points["clean"].adversarial
    assert points["clean"].adversarial < points["sign"].adversarial < points["adversarial"].adversarial
    for point in points.values():
        assert point.adversarial + point.clean + point.undecided == pytest.approx(1.0, abs=1e-12)


def test_the_shortest_design_decides_and_one_member_fewer_does_not() -> None:
    for design in DESIGNS:
        needed = shortest(design)
        tests = [Design(**{**vars_of(design), "n_max": n}).test() for n in (needed.clean, needed.adversarial)]
        unanimous = [np.zeros((needed.clean, 1), dtype=bool), np.ones((needed.adversarial, 1), dtype=bool)]
        for test, votes, boundary in zip(tests, unanimous, ("lower", "upper"), strict=True):
            ratio = run_votes(test, votes).log_likelihood_ratio[0]
            before = ratio - test.increments[0, int(votes[0, 0])]
            if boundary == "lower":
                assert ratio <= test.lower[-1]
                assert len(votes) == design.min_accept or before > test.lower[-1]
            else:
                assert ratio >= test.upper[-1] > before


def test_a_vote_that_reaches_a_boundary_exactly_crosses_it() -> None:
    design = Design(0.05, 0.6, alpha=0.05, beta=0.4)  # v = B = ln(.4 / .95) and u = A = ln(.6 / .05)
    assert design.increments == design.boundaries
    assert shortest(design) == Shortest(clean=1, adversarial=1)
    found = operating_characteristic(design, 0.3)
    assert (found.adversarial, found.mean_members) == pytest.approx((0.3, 1.0))


def test_a_minimum_before_clean_counts_among_the_members_needed() -> None:
    assert shortest(Design(0.05, 0.6, min_accept=7)).clean == 7
    with pytest.raises(RecipeError, match="'clean' takes 7 agreeing members"):
        check_feasible(Design(0.05, 0.6, n_max=6, min_accept=7))
    with pytest.raises(RecipeError, match=r"'clean' takes 4 agreeing .* and 'adversarial' takes 2 disagreeing"):
        check_feasible(Design(0.05, 0.6, n_max=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q0": 0.6}, "0 < q0 < q1 < 1"),
        ({"q0": 0.0}, "0 < q0 < q1 < 1"),
        ({"q1": 1.0}, "0 < q0 < q1 < 1"),
        ({"q1": math.nan}, "0 < q0 < q1 < 1"),
        ({"alpha": 0.5, "beta": 0.5}, "sum to less than 1"),
        ({"alpha": math.nan}, "sum to less than 1"),
        ({"beta": 0.0}, "sum to less than 1"),
        ({"n_max": 0}, "n_max is 0; expected 1 to 2000"),
        ({"n_max": 1_000_000}, "n_max is 1000000; expected 1 to 2000"),
        ({"min_accept": 0}, "min_accept is 0"),
        ({"truncation": "coin"}, "'coin'"),
        ({"boundary": "bayes"}, "'bayes'"),
        ({"q0": 1e-20, "q1": 2e-20}, "too close"),
        ({"q0": 0.5, "q1": math.nextafter(0.5, 1.0)}, "too close"),
        ({"alpha": 1e-320}, "as good as zero"),
    ],
)
def test_designs_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Design(**({"q0": 0.05, "q1": 0.6} | changes))  # type: ignore[arg-type]


def test_probabilities_out_of_range_are_refused() -> None:
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(RecipeError, match="expected 0 to 1"):
            operating_characteristic(Design(0.05, 0.6), p)
        with pytest.raises(RecipeError, match="between 0 and 1"):
            wald_exponent(Design(0.05, 0.6), p)
    with pytest.raises(ValueError, match="sum to one"):
        operating_point(Design(0.05, 0.6, n_max=4).test(), np.full((4, 2), 0.4))
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        operating_point(Design(0.05, 0.6, n_max=4).test(), np.full((3, 2), 0.5))


def vars_of(design: Design) -> dict[str, object]:
    return {name: getattr(design, name) for name in Design.__dataclass_fields__}
