from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.sequential_cases import OUTCOME, ROWS, answers, cases

from s2ap_defend.sequential import NEAR_TIE, SequentialTest, log_likelihood_path, run_sequential_test

Case = tuple[SequentialTest, np.ndarray, np.ndarray]


def specified(test: SequentialTest, said: np.ndarray, base: int) -> dict[str, object]:
    """What docs/model-file.md says of one input: answers [n, K] and a base label, one member after the other."""
    evidence, alarm, clean, asked = 0.0, False, False, 0
    votes, sums = [0] * said.shape[1], [0.0] * said.shape[1]

    def weight(label: int) -> float:
        place = sum(edge <= evidence for edge in test.base_vote_edges)
        return float(test.base_vote_weights[place]) if label == base else 1.0

    for i, logp in enumerate(said):
        if clean or (alarm and (not test.correct or i >= test.vote_members)):
            break
        first, second = sorted((n * weight(label) for label, n in enumerate(votes)), reverse=True)[:2]
        if alarm and test.curtail and first - second > test.vote_members - i:
            break
        asked += 1
        margin = logp.max() - logp[base]
        votes[base if margin < NEAR_TIE else int(logp.argmax())] += 1
        sums = [total + float(value) for total, value in zip(sums, logp, strict=True)]
        if not alarm:
            score = margin if test.evidence == "margin" else -logp[base]
            evidence += test.increments[i, sum(edge <= score for edge in test.edges[i])]
            alarm = bool(evidence >= test.upper[i])
            clean = bool(not alarm and evidence <= test.lower[i])
    undecided = not (alarm or clean)
    adversarial = alarm or (undecided and evidence > test.final_threshold)
    ranked = max(range(len(votes)), key=lambda label: (votes[label] * weight(label), sums[label], -label))
    return {
        "label": ranked if adversarial and test.correct else base,
        "adversarial": adversarial,
        "label_change_rate": np.float32((asked - votes[base]) / asked),
        "log_likelihood_ratio": evidence,
        "members_used": asked,
        "votes": votes,
        "abstained": (adversarial and not test.correct) or (undecided and test.undecided_abstains),
    }


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_every_input_is_decided_and_labelled_as_the_format_specifies(case: Case) -> None:
    test, logp, base = case
    outcome = run_sequential_test(test, logp, base)
    expected = [specified(test, logp[:, j], int(base[j])) for j in range(ROWS)]
    for name in OUTCOME:
        assert getattr(outcome, name).tolist() == [row[name] for row in expected], name


@settings(max_examples=150, deadline=None)
@given(case=cases(), seed=st.integers(0, 2**32 - 1), cut=st.integers(1, ROWS - 1))
def test_permuting_or_splitting_the_batch_changes_nothing(case: Case, seed: int, cut: int) -> None:
    test, logp, base = case
    whole = run_sequential_test(test, logp, base)
    order = np.random.default_rng(seed).permutation(ROWS)
    permuted = run_sequential_test(test, logp[:, order], base[order])
    halves = [run_sequential_test(test, logp[:, part], base[part]) for part in (slice(0, cut), slice(cut, ROWS))]
    for name in OUTCOME:
        assert np.array_equal(getattr(whole, name)[order], getattr(permuted, name)), name
        assert np.array_equal(getattr(whole, name), np.concatenate([getattr(half, name) for half in halves])), name


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_curtailment_changes_no_decision_and_never_asks_more(
    case: Case,
) -> None:
    test, logp, base = case
    short, full = (run_sequential_test(replace(test, curtail=curtail), logp, base) for curtail in (True, False))
    for name in ("label", "adversarial", "log_likelihood_ratio", "abstained"):
        assert np.array_equal(getattr(short, name), getattr(full, name)), name
    assert (short.members_used <= full.members_used).all()
    assert (short.votes <= full.votes).all()


@settings(max_examples=100, deadline=None)
@given(case=cases(), rival=st.integers(0, 3))
def test_what_members_say_that_were_not_asked_changes_nothing(case: Case, rival: int) -> None:
    test, logp, base = case
    outcome = run_sequential_test(test, logp, base)
    other = logp.copy()
    late = np.arange(test.members)[:, None] >= outcome.members_used
    other[late] = -9.0
    other[..., rival % logp.shape[2]] = np.where(late, 0.0, other[..., rival % logp.shape[2]])
    for name in OUTCOME:
        assert np.array_equal(getattr(run_sequential_test(test, other, base), name), getattr(outcome, name)), name


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_the_ratio_is_the_path_at_the_stop(case: Case) -> None:
    test, logp, base = case
    path = log_likelihood_path(test, logp, base)
    assert path.shape == (test.members, ROWS)
    crossed = (path >= test.upper[:, None]) | (path <= test.lower[:, None])
    stop = np.where(crossed.any(axis=0), crossed.argmax(axis=0), test.members - 1)
    ratio = run_sequential_test(test, logp, base).log_likelihood_ratio
    assert np.array_equal(path[stop, np.arange(ROWS)], ratio)


@settings(max_examples=100, deadline=None)
@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_binary_evidence_is_graded_evidence_with_two_bins(case: Case, seed: int) -> None:
    # Members that say a label with probability .8: the surprise is .22 for an agreement, 1.6 or more else.
    test, logp, base = case
    members, _, classes = logp.shape
    logp = answers(np.random.default_rng(seed).integers(0, classes, (members, ROWS)).tolist(), classes)
    binary = replace(
        test,
        evidence="margin",
        edges=np.full((members, 1), NEAR_TIE),
        increments=test.increments[:, [0, -1]],
    )
    two = replace(binary, evidence="surprise", edges=np.full((members, 1), 0.5, dtype=np.float32))
    three = replace(
        two,
        edges=np.tile(np.array([0.5, 2.0], dtype=np.float32), (members, 1)),
        increments=test.increments[:, [0, -1, -1]],
    )
    expected = run_sequential_test(binary, logp, base)
    for graded in (two, three):
        outcome = run_sequential_test(graded, logp, base)
        for name in OUTCOME:
            assert np.array_equal(getattr(outcome, name), getattr(expected, name)), name
