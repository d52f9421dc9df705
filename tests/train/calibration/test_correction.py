import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train.correlated_members import correlated_answers, voted

from s2ap_defend.sequential import SequentialTest, base_vote_weight
from s2ap_train.calibration import (
    Answers,
    Detection,
    base_votes,
    calibrate,
    correction_table,
    majority,
    member_correlation,
)

CLEAN = [0.05, 0.1, 0.15, 0.2, 0.1, 0.1]
FOOLED = [0.7, 0.6, 0.8, 0.7, 0.5, 0.7]


def test_effective_members_by_hand() -> None:
    """Four inputs. Members 0 and 1 vote alike, 2 the opposite: phi 1, -1, -1, mean -1/3; member 3 never disagrees."""
    votes = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], dtype=bool)
    three = member_correlation(votes)
    assert (three.phi, three.left_out) == (pytest.approx(-1 / 3), 1)
    assert three.effective_members == 3.0  # phi below 0 counts as 0
    two = member_correlation(votes[[0, 1, 3]])
    assert (two.phi, two.effective_members) == (pytest.approx(1.0), pytest.approx(1.0))
    # phi of (1,1,0,0) and (1,0,0,0): (1/4 - 1/2 * 1/4) / sqrt(1/4 * 3/16) = 1 / sqrt(3); n_eff = 2 / (1 + phi)
    half = member_correlation(np.array([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=bool))
    assert half.phi == pytest.approx(1 / math.sqrt(3))
    assert half.effective_members == pytest.approx(2 / (1 + 1 / math.sqrt(3)))
    none = member_correlation(votes[[0, 3]])
    assert (none.phi, none.effective_members, none.left_out) == (None, None, 1)


def vetoed(clean: Answers, attacked: Answers, members: int) -> SequentialTest:
    """Every member that disagrees adds 1; flagged from 1 on, after all members."""
    upper = np.full(members, math.inf)
    upper[-1] = 1.0
    return SequentialTest(
        evidence="margin",
        edges=np.full((members, 1), 1e-4, dtype=np.float32),
        increments=np.tile([0.0, 1.0], (members, 1)),
        lower=np.full(members, -math.inf),
        upper=upper,
        final_threshold=math.inf,
        vote_members=members,
        waves=(members,),
    )


def test_the_soft_veto_by_hand() -> None:
    """100 clean and 100 attacked inputs, each worth half a hundredth; L is the number of members that disagree.

    L = 1: 8 clean ones, 12 attacked ones, of which the base label is right for 2. L = 2: 20 attacked, wrong; 20 of
    these too. Groups of 10 or more of 40: L = 1 and L = 2. Right to wrong, half a count added to each:
    10.5 / 10.5 = 1 and .5 / 20.5.
    """
    clean = voted([[j < 8 for j in range(100)], [False] * 100])
    attacked = voted([[j < 32 for j in range(100)], [j < 20 for j in range(100)]], right=False)
    attacked.label[20:22] = 0
    test = vetoed(clean, attacked, 2)
    votes = base_votes("soft", test, clean, attacked)
    np.testing.assert_allclose(votes.edges, [2.0])
    np.testing.assert_allclose(votes.weights, [0.5, 0.5 / 21], rtol=1e-12)
    soft = replace(test, base_vote_weights=votes.weights, base_vote_edges=votes.edges)
    np.testing.assert_allclose(base_vote_weight(soft, np.array([1.0, 2.0, 3.0])), [0.5, 0.5 / 21, 0.5 / 21])


def test_without_a_flagged_input_the_base_label_keeps_its_vote() -> None:
    quiet = voted([[False] * 30])
    assert base_votes("soft", vetoed(quiet, quiet, 1), quiet, quiet).weights.tolist() == [1.0]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_the_soft_veto_never_trusts_the_base_label_more_with_more_evidence(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clean = voted((rng.random((5, 60)) < 0.2).tolist())
    attacked = voted((rng.random((5, 90)) < 0.6).tolist(), right=False)
    attacked.label[rng.random(90) < 0.4] = 0
    votes = base_votes("soft", vetoed(clean, attacked, 5), clean, attacked)
    assert (np.diff(votes.weights) < 0).all()
    assert (np.diff(votes.edges) > 0).all()
    assert ((votes.weights > 0) & (votes.weights < 1)).all()
    assert len(votes.weights) == len(votes.edges) + 1


def test_hard_and_no_veto_are_constant() -> None:
    quiet = voted([[False] * 30])
    for veto, weight in (("hard", 0.0), ("none", 1.0)):
        votes = base_votes(veto, vetoed(quiet, quiet, 1), quiet, quiet)  # type: ignore[arg-type]
        assert (votes.weights.tolist(), votes.edges.tolist()) == ([weight], [])


def test_the_correction_table_counts_what_each_veto_does() -> None:
    """Three members, all asked. Clean inputs: one of ten is flagged by one member, two members vote for its label.

    Attacked: four fool the classifier; two members find the right label of two of them, one member of the third, none
    of the fourth.
    """
    clean = voted([[j == 0 for j in range(10)], [False] * 10, [False] * 10])
    attacked = voted([[True, True, True, False], [True, True, False, False], [False] * 4], right=False)
    test = vetoed(clean, attacked, 3)
    vetoes = [(veto, base_votes(veto, test, clean, attacked)) for veto in ("hard", "none")]
    hard, none, vote = correction_table(test, clean, attacked, vetoes)
    assert (hard.name, hard.clean_accuracy, hard.corrected, hard.corrected_of_flagged) == ("hard", 0.9, 0.75, 1.0)
    assert (none.name, none.clean_accuracy, none.corrected) == ("none", 1.0, 0.5)
    assert none.corrected_of_flagged == pytest.approx(2 / 3)
    assert (vote.name, vote.clean_accuracy, vote.corrected, vote.members_used) == ("vote only", 1.0, 0.5, 3.0)
    assert majority(attacked).tolist() == [1, 1, 0, 0]


def test_calibrated_base_votes_are_those_of_the_veto() -> None:
    rng = np.random.default_rng(0)
    parts = [
        correlated_answers(rng, 200, CLEAN, wrong=0.1),
        correlated_answers(rng, 300, FOOLED, fooled=True),
        correlated_answers(rng, 300, CLEAN),
    ]
    weights = {
        veto: calibrate(*parts, Detection(veto=veto)).tables.base_vote_weights  # type: ignore[arg-type]
        for veto in ("soft", "hard", "none")
    }
    assert (weights["hard"], weights["none"]) == ((0.0,), (1.0,))
    assert len(weights["soft"]) > 1
    assert list(weights["soft"]) == sorted(weights["soft"], reverse=True)
