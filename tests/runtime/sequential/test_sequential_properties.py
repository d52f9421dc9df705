import math
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.sequential_cases import COARSE, OUTCOME, ROWS, answers, cases

from s2ap_defend.sequential import (
    NEAR_TIE,
    SequentialTest,
    StageAnswers,
    accepted_raw,
    log_likelihood_path,
    run_sequential_test,
)

Case = tuple[SequentialTest, StageAnswers]


def probability(log: float) -> float:
    """Of a log-probability: e^(x / 256) by its Taylor polynomial of degree 8, squared eight times."""
    part, value = max(log, -40.0) / 256, 0.0
    for degree in range(8, -1, -1):
        value = value * part + 1 / math.factorial(degree)
    for _ in range(8):
        value *= value
    return value


def amplified(mean: float, exponent: float) -> float:
    """A power of a probability, a multiple of 1/2, by products and a square root."""
    result = mean if exponent >= 1 else 1.0
    for _ in range(int(exponent) - 1):
        result *= mean
    return result * math.sqrt(mean) if exponent % 1 else result


class Specified:
    """What docs/model-file.md says of one input, one member after the other, in plain Python."""

    def __init__(self, test: SequentialTest, said: StageAnswers, row: int, classifier: np.ndarray) -> None:
        self.test, self.logs, self.base = test, said.members[:, row], classifier
        self.votes, self.sums, self.means = ([0.0] * len(classifier) for _ in range(3))
        self.weight = 0.0
        for i in range(test.opening):
            self.vote(i)
        self.first = self.answer()
        self.evidence = 0.0
        for signal in test.signals:
            score = self.signal(signal.name, said, row)
            self.evidence += signal.increments[sum(edge <= score for edge in signal.edges)]
        self.asked = self.changed = 0
        self.alarm = not said.valid[row]  # type: ignore[index]
        self.clean = self.voted = False

    def vote(self, i: int) -> None:
        weight = float(self.test.vote_weights[i])
        self.votes[int(self.logs[i].argmax())] += weight
        for label, log in enumerate(self.logs[i].astype(np.float64).tolist()):
            self.sums[label] += weight * log
            self.means[label] += weight * probability(log)
        self.weight += weight

    def ranked(self) -> int:
        return max(range(len(self.votes)), key=lambda label: (self.votes[label], self.sums[label], -label))

    def answer(self) -> int:
        if self.test.answer == "robust":
            return self.ranked()
        if self.test.answer == "accurate":
            return int(self.base.argmax())
        own = [probability(log) for log in self.base.astype(np.float64).tolist()]
        powers = [amplified(mean / self.weight, self.test.amplification) for mean in self.means]
        total = 0.0
        for q in powers:
            total += q
        mix = [
            (1 - self.test.jury_share) * p + self.test.jury_share * (q / total)
            for p, q in zip(own, powers, strict=True)
        ]
        return int(np.argmax(mix))

    def signal(self, name: str, said: StageAnswers, row: int) -> np.float32:
        if name == "classifier surprise":
            return np.float32(-self.base[self.first])
        if name == "reconstruction error":
            return said.reconstruction_error[row]  # type: ignore[index]
        mean = [total / max(self.weight, 1 / 256) for total in self.sums]
        return np.float32(max(m for label, m in enumerate(mean) if label != self.first) - mean[self.first])

    def settled(self, i: int) -> bool:
        first, second = sorted(self.votes, reverse=True)[:2]
        return first - second > float(self.test.vote_weights[i + 1 :].sum())

    def ask(self, i: int) -> None:
        test, logs = self.test, self.logs[i]
        margin = logs.max() - logs[self.first]
        self.asked += 1
        self.changed += bool(margin >= NEAR_TIE)
        if i >= test.opening:
            self.vote(i)
        if self.alarm or self.clean:
            return
        score = margin if test.evidence == "margin" else -logs[self.first]
        self.evidence += test.increments[i, sum(edge <= score for edge in test.edges[i])]
        self.alarm = bool(self.evidence >= test.upper[i])
        self.clean = bool(
            not self.alarm and self.evidence <= test.lower[i] and (not test.await_vote or self.settled(i))
        )

    def run(self) -> dict[str, object]:
        test = self.test
        for i in range(test.members):
            wanted = self.alarm and test.polls and test.vote_weights[i] > 0 and not self.voted
            if i < test.opening or not (self.alarm or self.clean) or wanted:
                self.ask(i)
            counted = test.correction == "correct" or test.answer == "robust"
            self.voted |= bool(test.curtail and counted and self.alarm and self.settled(i))
        undecided = not (self.alarm or self.clean)
        adversarial = self.alarm or (undecided and self.evidence > test.final_threshold)
        return {
            "label": self.ranked() if adversarial and test.correction == "correct" else self.answer(),
            "adversarial": adversarial,
            "base_label": int(self.base.argmax()),
            "label_change_rate": np.float32(self.changed / self.asked),
            "log_likelihood_ratio": self.evidence,
            "members_used": self.asked,
            "votes": self.votes,
            "abstained": (adversarial and test.correction == "reject") or (undecided and test.undecided_abstains),
            "first_answer": self.first,
        }


def specified(test: SequentialTest, said: StageAnswers, row: int) -> dict[str, object]:
    """The verdict on one input; one that its raw image is not accepted for begins anew behind the purifier."""
    result = Specified(test, said, row, said.classifier[row]).run()
    if said.on_raw is not None:
        raw = Specified(test, said, row, said.on_raw[row])
        for i in range(test.opening):
            raw.ask(i)
        if raw.clean:
            result = Specified(test, said, row, said.on_raw[row]).run()
    result["abstained"] = result["abstained"] or not said.finite[row]  # type: ignore[index]
    return result


@settings(max_examples=300, deadline=None)
@given(case=cases())
def test_every_input_is_decided_and_labelled_as_the_format_specifies(case: Case) -> None:
    test, said = case
    outcome = run_sequential_test(test, said)
    expected = [specified(test, said, row) for row in range(ROWS)]
    for name in OUTCOME:
        assert getattr(outcome, name).tolist() == [row[name] for row in expected], name


@settings(max_examples=150, deadline=None)
@given(case=cases(), seed=st.integers(0, 2**32 - 1), cut=st.integers(1, ROWS - 1))
def test_permuting_or_splitting_the_batch_changes_nothing(case: Case, seed: int, cut: int) -> None:
    test, said = case
    whole = run_sequential_test(test, said)
    order = np.random.default_rng(seed).permutation(ROWS)
    permuted = run_sequential_test(test, said.rows(order))
    halves = [run_sequential_test(test, said.rows(part)) for part in (slice(0, cut), slice(cut, ROWS))]
    for name in OUTCOME:
        assert np.array_equal(getattr(whole, name)[order], getattr(permuted, name)), name
        assert np.array_equal(getattr(whole, name), np.concatenate([getattr(half, name) for half in halves])), name


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_curtailment_changes_no_decision_and_never_asks_more(case: Case) -> None:
    test, said = case
    short, full = (run_sequential_test(replace(test, curtail=curtail), said) for curtail in (True, False))
    for name in ("label", "adversarial", "log_likelihood_ratio", "abstained"):
        assert np.array_equal(getattr(short, name), getattr(full, name)), name
    assert (short.members_used <= full.members_used).all()
    assert (short.votes <= full.votes).all()


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_an_answer_that_waits_for_the_vote_is_that_of_the_whole_jury(case: Case) -> None:
    test, said = case
    waits = replace(test, answer="robust", await_vote=True)
    patient = replace(waits, lower=np.full(test.members, -np.inf), await_vote=False)
    everyone = replace(patient, upper=np.full(test.members, np.inf), final_threshold=math.inf, undecided_abstains=False)
    answered = ~run_sequential_test(waits, said).adversarial
    decided = answered & ~run_sequential_test(waits, said).abstained
    whole = run_sequential_test(everyone, replace(said, on_raw=None, valid=None))
    assert np.array_equal(run_sequential_test(waits, said).label[decided], whole.label[decided])


@settings(max_examples=100, deadline=None)
@given(case=cases(), rival=st.integers(0, 3))
def test_what_members_say_that_were_not_asked_changes_nothing(case: Case, rival: int) -> None:
    test, said = case
    outcome = run_sequential_test(replace(test, correction="reject"), said)
    other = said.members.copy()
    late = np.arange(test.members)[:, None] >= outcome.members_used
    other[late] = -9.0
    other[..., rival % other.shape[2]] = np.where(late, 0.0, other[..., rival % other.shape[2]])
    changed = run_sequential_test(replace(test, correction="reject"), replace(said, members=other))
    for name in OUTCOME:
        assert np.array_equal(getattr(changed, name), getattr(outcome, name)), name


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_a_member_without_a_vote_changes_no_label_of_the_whole_jury(case: Case) -> None:
    test, said = case
    flagged = replace(test, final_threshold=-math.inf, undecided_abstains=False, lower=np.full(test.members, -np.inf))
    flagged = replace(flagged, await_vote=False, correction="correct")
    outcome = run_sequential_test(flagged, said)
    other = said.members.copy()
    other[test.vote_weights == 0.0] = other[test.vote_weights == 0.0][:, ::-1]
    again = run_sequential_test(flagged, replace(said, members=other))
    assert np.array_equal(outcome.label, again.label)


@settings(max_examples=100, deadline=None)
@given(case=cases(raw=False))
def test_the_ratio_is_the_path_at_the_stop(case: Case) -> None:
    test, said = case
    said = replace(said, valid=None)
    path, clean = log_likelihood_path(test, said)
    assert path.shape == (test.members, ROWS)
    crossed = (path >= test.upper[:, None]) | clean
    stop = np.where(crossed.any(axis=0), crossed.argmax(axis=0), test.members - 1)
    ratio = run_sequential_test(test, said).log_likelihood_ratio
    assert np.array_equal(path[stop, np.arange(ROWS)], ratio)


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_what_the_opening_accepts_on_raw_images_is_never_flagged_and_the_rest_is_purified(case: Case) -> None:
    test, said = case
    outcome, accepted = run_sequential_test(test, said), accepted_raw(test, said)
    behind = run_sequential_test(test, replace(said, on_raw=None))
    assert not outcome.adversarial[accepted].any()
    assert (outcome.members_used[accepted] == test.opening).all()
    for name in OUTCOME:
        assert np.array_equal(getattr(outcome, name)[~accepted], getattr(behind, name)[~accepted]), name


@settings(max_examples=100, deadline=None)
@given(case=cases(signals=False, raw=False), seed=st.integers(0, 2**32 - 1))
def test_binary_evidence_is_graded_evidence_with_two_bins(case: Case, seed: int) -> None:
    # Members that say a label with probability .8: the surprise is .22 for an agreement, 1.6 or more else.
    test, said = case
    members, _, classes = said.members.shape
    logp = answers(np.random.default_rng(seed).integers(0, classes, (members, ROWS)).tolist(), classes)
    said = replace(said, members=logp)
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
    expected = run_sequential_test(binary, said)
    for graded in (two, three):
        outcome = run_sequential_test(graded, said)
        for name in OUTCOME:
            assert np.array_equal(getattr(outcome, name), getattr(expected, name)), name


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.5, 0.75, 0.9]), power=st.sampled_from([1.0, 3.0]))
def test_a_mix_takes_no_label_from_a_jury_that_is_sure_enough(seed: int, share: float, power: float) -> None:
    # Adaptive smoothing, arXiv 2301.12554: a margin of (1 - a) / a in the jury's probabilities cannot be overcome.
    rng = np.random.default_rng(seed)
    logp = np.log(rng.dirichlet([0.3, 0.3, 0.3], (4, ROWS))).clip(-9.0).astype(np.float32)
    test = SequentialTest(
        evidence="margin",
        edges=np.full((3, 1), COARSE[2]),
        increments=np.zeros((3, 2)),
        lower=np.full(3, -np.inf),
        upper=np.full(3, np.inf),
        final_threshold=math.inf,
        waves=(3,),
        vote_weights=np.ones(3),
        answer="mixed",
        jury_share=share,
        amplification=power,
    )
    outcome = run_sequential_test(test, StageAnswers(logp[0], logp[1:]))
    powers = np.exp(logp[1:].astype(np.float64)).mean(axis=0) ** power
    jury = powers / powers.sum(axis=1, keepdims=True)
    second, first = np.sort(jury, axis=1)[:, -2:].T
    sure = first - second >= (1 - share) / share + 1e-9
    assert np.array_equal(outcome.label[sure], jury.argmax(axis=1)[sure])
