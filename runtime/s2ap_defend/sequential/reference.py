"""The numpy reference of the decision: the sequential test and who gives the label.

The graph of a defended model equals `run_sequential_test` exactly, given the same answers of its stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from s2ap_defend.sequential.jury import exponential, mixed_label, settled, voted_label
from s2ap_defend.sequential.tables import WEIGHT_UNIT, Evidence, SequentialTest, SignalName
from s2ap_defend.types import Bool, Float32, Float64, Int64

NEAR_TIE = np.float32(1e-4)
"""A member whose top log-probability exceeds that of a label by less than this agrees with the label."""


@dataclass(frozen=True)
class StageAnswers:
    """What the stages of a model say of N inputs.

    Attributes:
        classifier: Log-probabilities of the classifier on what it sees [N, K], the purified image where there is one.
        members: Log-probabilities of the members on what each sees [n, N, K], in the order in which they are asked.
        on_raw: The classifier's on the image as it came [N, K], where only what is not accepted in the opening is
            purified; None: every image is, or none.
        reconstruction_error: What the purifier left [N]; None: nothing asks for it.
        valid: Images whose pixels are all in [0, 1] [N]; others are flagged. None: all are.
        finite: Images whose pixels are all finite [N]; others abstain as well. None: all are.
    """

    classifier: Float32
    members: Float32
    on_raw: Float32 | None = None
    reconstruction_error: Float32 | None = None
    valid: Bool | None = None
    finite: Bool | None = None

    def __len__(self) -> int:
        return len(self.classifier)

    @classmethod
    def concatenate(cls, parts: "Sequence[StageAnswers]") -> "StageAnswers":
        """The answers for several sets of inputs as one; all of them give the same."""

        def joined(name: str) -> Any:  # noqa: ANN401
            found = [getattr(part, name) for part in parts]
            return None if found[0] is None else np.concatenate(found, axis=int(name == "members"))

        return cls(**{one.name: joined(one.name) for one in fields(cls)})

    def rows(self, index: Bool | Int64 | slice) -> "StageAnswers":
        """The chosen inputs."""
        names = ("classifier", "on_raw", "reconstruction_error", "valid", "finite")
        values = {name: getattr(self, name) for name in names}
        chosen: dict[str, Any] = {name: None if value is None else value[index] for name, value in values.items()}
        return StageAnswers(members=self.members[:, index], **chosen)

    def reorder(self, order: Int64) -> "StageAnswers":
        """The answers of the chosen members, in this order."""
        return replace(self, members=self.members[order])


@dataclass(frozen=True)
class SequentialOutcome:
    """What was decided for N inputs; fields as in Verdicts.

    Attributes:
        first_answer: The label that the evidence is measured against [N].
        asked: Who was asked [N, n], for the vote alone included.
    """

    label: Int64
    adversarial: Bool
    base_label: Int64
    label_change_rate: Float32
    log_likelihood_ratio: Float64
    members_used: Int64
    votes: Float64
    abstained: Bool
    first_answer: Int64
    asked: Bool


def member_scores(evidence: Evidence, log_probabilities: Float32, label: Int64) -> Float32:
    """Scores of members against labels, in nats, shape [..., N].

    Args:
        evidence: 'margin' or 'surprise', as in SequentialTest.
        log_probabilities: Member log-probabilities [..., N, K].
        label: Labels [N].
    """
    index = np.broadcast_to(label[..., None], (*log_probabilities.shape[:-1], 1))
    of_label = np.take_along_axis(log_probabilities, index, axis=-1)[..., 0]
    if evidence == "surprise":
        return np.asarray(-of_label, dtype=np.float32)
    return np.asarray(log_probabilities.max(axis=-1) - of_label, dtype=np.float32)


def run_sequential_test(test: SequentialTest, said: StageAnswers) -> SequentialOutcome:
    """Decide inputs whose answers of all stages are known.

    Where the classifier's answers on raw images are given, inputs that these accept in the opening keep that verdict;
    all others begin anew with the answers on purified images.

    Args:
        test: The tables.
        said: The answers of the stages.
    """
    if said.on_raw is None:
        return _run(test, said, said.classifier)
    raw, accepted = _run(test, said, said.on_raw), accepted_raw(test, said)
    purified = _run(test, said, said.classifier)
    chosen = {
        one.name: np.where(
            accepted.reshape(-1, *[1] * (getattr(raw, one.name).ndim - 1)),
            getattr(raw, one.name),
            getattr(purified, one.name),
        )
        for one in fields(SequentialOutcome)
    }
    return SequentialOutcome(**chosen)


def accepted_raw(test: SequentialTest, said: StageAnswers) -> Bool:
    """Inputs that are accepted in the opening on their raw images [N]; none where all are purified, or none."""
    if said.on_raw is None:
        return np.zeros(len(said), dtype=bool)
    path = _Path(test, said, said.on_raw)
    for i in range(test.opening):
        path.ask(i, np.ones(len(said), dtype=bool))
        path.add(i)
    return np.asarray(path.stops_clean(test.opening - 1) & ~path.crosses(test.opening - 1) & _valid(said))


def log_likelihood_path(test: SequentialTest, said: StageAnswers) -> tuple[Float64, Bool]:
    """(log-likelihood ratio after each member if nobody stopped [n, N], nats; where 'clean' would be decided [n, N]).

    `run_sequential_test` stops on this path: its ratio is the path's value at the stop, to the last bit. It is the path
    behind the purifier where only some images are purified.

    Args:
        test: The tables; its alarm boundary is not used.
        said: The answers of the stages.
    """
    path = _Path(test, said, said.classifier)
    ratios, clean = np.zeros((test.members, len(said))), np.zeros((test.members, len(said)), dtype=bool)
    for i in range(test.members):
        path.ask(i, np.ones(len(said), dtype=bool))
        path.add(i)
        ratios[i], clean[i] = path.ratio, path.stops_clean(i)
    return ratios, clean


def first_answers(test: SequentialTest, said: StageAnswers) -> Int64:
    """The label that the evidence is measured against [N]: of the classifier and the opening's jurors."""
    return _Path(test, said, said.classifier).first_answer


def signal_scores(test: SequentialTest, said: StageAnswers, name: SignalName) -> Float32:
    """Scores of a signal, as in Signal [N]; in nats but for the reconstruction error.

    Args:
        test: Its opening and votes.
        said: The answers of the stages.
        name: The signal.

    Raises:
        ValueError: If it is the reconstruction error, and that is not given.
    """
    return _Path(replace(test, signals=()), said, said.classifier).signal(name, said)


def _run(test: SequentialTest, said: StageAnswers, classifier: Float32) -> SequentialOutcome:
    path = _Path(test, said, classifier)
    decided = ~_valid(said)
    adversarial, voted = decided.copy(), np.zeros(len(said), dtype=bool)
    for i in range(test.members):
        undecided = ~decided
        voting = adversarial & ~voted & (test.correct and test.vote_weights[i] > 0.0)
        path.ask(i, undecided | voting | (i < test.opening))
        path.add(i, undecided)
        crossed = undecided & path.crosses(i)
        adversarial |= crossed
        decided |= crossed | (undecided & path.stops_clean(i))
        if test.curtail:
            voted |= adversarial & path.settled(i)
    undecided = ~decided
    adversarial |= undecided & (path.ratio > test.final_threshold)
    abstained = (adversarial & (not test.correct)) | (undecided & test.undecided_abstains)
    if said.finite is not None:
        abstained |= ~said.finite
    corrected = voted_label(path.votes, path.summed) if test.correct else path.label()
    used = path.asked.sum(axis=1)
    return SequentialOutcome(
        label=np.where(adversarial, corrected, path.label()),
        adversarial=adversarial,
        base_label=np.asarray(classifier.argmax(axis=1), dtype=np.int64),
        label_change_rate=(path.changed / used).astype(np.float32),
        log_likelihood_ratio=path.ratio,
        members_used=used,
        votes=path.votes,
        abstained=abstained,
        first_answer=path.first_answer,
        asked=path.asked,
    )


class _Path:
    """Evidence and votes of N inputs as members are asked one after the other."""

    def __init__(self, test: SequentialTest, said: StageAnswers, classifier: Float32) -> None:
        self._test, self._said, self._classifier = test, said.members, classifier
        count, classes = classifier.shape
        self.changed = np.zeros(count, dtype=np.int64)
        self.asked = np.zeros((count, test.members), dtype=bool)
        self.votes, self.summed, self._probabilities = (np.zeros((count, classes)) for _ in range(3))
        self._weight = np.zeros(count)
        everyone = np.ones(count, dtype=bool)
        for i in range(test.opening):
            self._vote(i, everyone)
        self.first_answer = self.label()
        self.ratio = np.zeros(count)
        for signal in test.signals:
            score = self.signal(signal.name, said)
            bins = (score[:, None] >= signal.edges[None, :]).sum(axis=1)
            self.ratio = self.ratio + signal.increments[bins]
        self._scores = member_scores(test.evidence, said.members, self.first_answer)  # [n, N]
        self._changes = member_scores("margin", said.members, self.first_answer) >= NEAR_TIE

    def ask(self, member: int, rows: Bool) -> None:
        """Ask a member about some inputs; the votes of the opening are counted already."""
        self.asked[:, member] = rows
        self.changed += rows & self._changes[member]
        if member >= self._test.opening:
            self._vote(member, rows)

    def add(self, member: int, rows: Bool | None = None) -> None:
        """Add a member's evidence to some inputs, or to all."""
        test = self._test
        bins = (self._scores[member][:, None] >= test.edges[member][None, :]).sum(axis=1)
        added = self.ratio + test.increments[member, bins]
        self.ratio = added if rows is None else np.where(rows, added, self.ratio)

    def crosses(self, member: int) -> Bool:
        """Where the alarm boundary is reached [N]."""
        return np.asarray(self.ratio >= self._test.upper[member])

    def stops_clean(self, member: int) -> Bool:
        """Where 'clean' can be decided, if no alarm is [N]."""
        clean = np.asarray(self.ratio <= self._test.lower[member])
        return clean & self.settled(member) if self._test.await_vote else clean

    def settled(self, member: int) -> Bool:
        """Where no vote behind this member's can change or tie the winner [N]."""
        return settled(self.votes, float(self._test.votes_left[member]))

    def label(self) -> Int64:
        """The answer of the classifier and the jurors asked so far, were nothing flagged [N]."""
        match self._test.answer:
            case "robust":
                return voted_label(self.votes, self.summed)
            case "mixed":
                return mixed_label(
                    self._classifier,
                    self._probabilities,
                    self._weight,
                    jury_share=self._test.jury_share,
                    amplification=self._test.amplification,
                )
            case "accurate":
                return np.asarray(self._classifier.argmax(axis=1), dtype=np.int64)

    def _vote(self, member: int, rows: Bool) -> None:
        weight = float(self._test.vote_weights[member])
        if weight == 0.0:
            return
        logs = self._said[member][rows].astype(np.float64)
        self.votes[rows, logs.argmax(axis=-1)] += weight
        self.summed[rows] += weight * logs
        self._probabilities[rows] += weight * exponential(logs)
        self._weight[rows] += weight

    def signal(self, name: SignalName, said: StageAnswers) -> Float32:
        """Scores of a signal [N]."""
        label = self.first_answer[:, None]
        match name:
            case "jury margin":
                mean = self.summed / np.maximum(self._weight, WEIGHT_UNIT)[:, None]
                of_label = np.take_along_axis(mean, label, axis=1)[:, 0]
                others = mean.copy()
                np.put_along_axis(others, label, -np.inf, axis=1)
                return np.asarray(others.max(axis=1) - of_label, dtype=np.float32)
            case "classifier surprise":
                return np.asarray(-np.take_along_axis(self._classifier, label, axis=1)[:, 0], dtype=np.float32)
            case _:
                if said.reconstruction_error is None:
                    raise ValueError("the test counts the reconstruction error, which is not given")
                return said.reconstruction_error


def _valid(said: StageAnswers) -> Bool:
    return np.ones(len(said), dtype=bool) if said.valid is None else said.valid
