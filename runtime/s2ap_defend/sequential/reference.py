"""The numpy reference of the decision: the sequential test and who gives the label.

The graph of a defended model equals `run_sequential_test` exactly, given the same answers of its stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from s2ap_defend.sequential.path import Path
from s2ap_defend.sequential.tables import SequentialTest, SignalName
from s2ap_defend.types import Bool, Float32, Float64, Int64


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


def run_sequential_test(test: SequentialTest, said: StageAnswers, *, constant_time: bool = False) -> SequentialOutcome:
    """Decide inputs whose answers of all stages are known.

    Where the classifier's answers on raw images are given, inputs that these accept in the opening keep that verdict;
    all others begin anew with the answers on purified images.

    Args:
        test: The tables.
        said: The answers of the stages.
        constant_time: Whether its time may not tell what is decided.
    """
    purified = _run(test, said, said.classifier, constant_time)
    if said.on_raw is None:
        return purified
    raw, accepted = _run(test, said, said.on_raw, constant_time), accepted_raw(test, said)
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
    path = _path(test, said, said.on_raw)
    path.scan(0, said.members[: test.opening])
    return path.decided & ~path.adversarial


def log_likelihood_path(test: SequentialTest, said: StageAnswers) -> tuple[Float64, Bool]:
    """(log-likelihood ratio after each member if nobody stopped [n, N], nats; where 'clean' would be decided [n, N]).

    `run_sequential_test` stops on this path: its ratio is the path's value at the stop, to the last bit. It is the path
    behind the purifier where only some images are purified.

    Args:
        test: The tables; its alarm boundary is not used.
        said: The answers of the stages.
    """
    never = np.full(test.members, np.inf)
    path = _path(replace(test, lower=-never, upper=never), replace(said, valid=None), said.classifier)
    ratios, clean = np.zeros((test.members, len(said))), np.zeros((test.members, len(said)), dtype=bool)
    for i in range(test.members):
        path.scan(i, said.members[i : i + 1])
        ratios[i], clean[i] = path.ratio, path.stops_clean(i, test.lower[i])
    return ratios, clean


def first_answers(test: SequentialTest, said: StageAnswers) -> Int64:
    """The label that the evidence is measured against [N]: of the classifier and the opening's jurors."""
    return _path(replace(test, signals=()), said, said.classifier).first_answer


def signal_scores(test: SequentialTest, said: StageAnswers, name: SignalName) -> Float32:
    """Scores of a signal, as in Signal [N]; in nats but for the reconstruction error.

    Args:
        test: Its opening and votes.
        said: The answers of the stages.
        name: The signal.

    Raises:
        ValueError: If it is the reconstruction error, and that is not given.
    """
    path = _path(replace(test, signals=()), said, said.classifier)
    return path.signal(name, said.reconstruction_error)


def _run(test: SequentialTest, said: StageAnswers, classifier: Float32, constant_time: bool) -> SequentialOutcome:
    path = _path(test, said, classifier, constant_time)
    path.scan(0, said.members)
    label, adversarial, abstained = path.verdict()
    return SequentialOutcome(
        label=label,
        adversarial=adversarial,
        base_label=np.asarray(classifier.argmax(axis=1), dtype=np.int64),
        label_change_rate=path.label_change_rate(),
        log_likelihood_ratio=path.ratio,
        members_used=path.used,
        votes=path.votes,
        abstained=abstained if said.finite is None else abstained | ~said.finite,
        first_answer=path.first_answer,
    )


def _path(test: SequentialTest, said: StageAnswers, classifier: Float32, constant_time: bool = False) -> Path:
    """The inputs at the beginning, with these answers of the classifier."""
    error, opening = said.reconstruction_error, said.members[: test.opening]
    return Path(test, classifier, opening, reconstruction_error=error, valid=said.valid, constant_time=constant_time)
