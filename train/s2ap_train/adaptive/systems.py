"""What is attacked: the defended file as it is served, and the bare classifier that is inside it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.model_file import ModelFile
from s2ap_defend.sequential import SequentialTest, StageAnswers, accepted_raw, run_sequential_test
from s2ap_defend.stages import CLASSIFIER, cut_stage
from s2ap_defend.types import Float32, Float64, Int64, Verdicts
from s2ap_train.attacks.right_images import label_margin
from s2ap_train.compute.memory import images_at_once
from s2ap_train.statistics.outcome import Outcome

RIGHT = 1e3
"""Score of an image whose answer is right and whose margin is zero; flagged images with a wrong answer score below."""

_BATCH = 256
_WORTH_A_WORKER = 16
_FLOOR = 1e-30


class System(Protocol):
    """Answers images; the attacker may ask as often as it likes."""

    def __call__(self, images: Float32, labels: Int64) -> Outcome:
        """Outcome for images [N, C, H, W] whose true labels [N] the attacker knows."""


def score_of(system: System) -> Callable[[Float32, Int64], Float64]:
    """What a black-box search lowers: the score of a system's outcomes."""
    return lambda images, labels: system(images, labels).score


class DefendedSystem:
    """The defended file, run by the runtime that serves it.

    Args:
        classifier: The loaded file.
        workers: Threads that share a batch; start the classifier with one thread then.
    """

    def __init__(self, classifier: DefendedClassifier, *, workers: int = 1) -> None:
        self._classifier = classifier
        self._test = classifier.manifest.to_test()
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="defended")

    def __call__(self, images: Float32, labels: Int64) -> Outcome:
        """Outcome of the served verdicts."""
        count = max(
            -(-len(images) // images_at_once(_BATCH, images.shape)),
            min(self._workers, len(images) // _WORTH_A_WORKER),
            1,
        )
        verdicts = list(self._pool.map(self._classifier, np.array_split(images, count)))
        return judge(Verdicts.concatenate(verdicts), labels, self._test)


class BareSystem:
    """The classifier stage alone: no purifier, no members, no test. It never flags."""

    def __init__(self, file: ModelFile, *, threads: int | None = None) -> None:
        stage = cut_stage(file.proto, CLASSIFIER)
        self._engine = OnnxRuntimeEngine(stage.SerializeToString(), device="cpu", threads=threads)

    def __call__(self, images: Float32, labels: Int64) -> Outcome:
        """Outcome of the classifier's labels; the score is its margin."""
        (log_probabilities,) = self._engine.run({"image": images}, ["log_probabilities"])
        return never_flagged(log_probabilities, labels)


def never_flagged(log_probabilities: Float32, labels: Int64) -> Outcome:
    """Outcome of a classifier without detector: its labels, with its margin of the true label as the score.

    Args:
        log_probabilities: Of the attacked images [N, K].
        labels: True labels [N].
    """
    label = log_probabilities.argmax(axis=1)
    margin = label_margin(log_probabilities.astype(np.float64), labels)
    score = np.where(label != labels, np.minimum(margin, -_FLOOR), np.maximum(margin, _FLOOR))
    nothing = np.zeros(len(labels), dtype=np.int64)
    never = nothing.astype(bool)
    return Outcome(
        label=label,
        flagged=never,
        abstained=never,
        members_used=nothing,
        score=score,
        evidence=np.zeros(len(labels)),
        margin=np.maximum(score, 0.0),
        not_asked=nothing,
    )


def judge(verdicts: Verdicts, labels: Int64, test: SequentialTest) -> Outcome:
    """Judge verdicts from the attacker's side.

    The score leads a search: first across the answer (RIGHT plus the margin of the true label in what the answer is
    the largest of, less the votes that are lost already), then below the detector's boundary while the answer stays
    wrong (excess of the log-likelihood ratio), until the image is wrong, not flagged and answered (negative). Where
    the undecided abstain, the boundary that counts for them is the one below which an image is clean.

    Args:
        verdicts: Of the attacked images.
        labels: True labels [N].
        test: The decision; its boundaries tell how far the evidence has to fall.
    """
    wrong = verdicts.label != labels
    success = ~verdicts.adversarial & ~verdicts.abstained & wrong
    answer = _answer_margin(verdicts, labels, test)
    stop = np.clip(verdicts.members_used, 1, test.members) - 1
    boundary = np.where(np.isfinite(test.upper[stop]), test.upper[stop], min(test.final_threshold, RIGHT / 2))
    boundary = np.where(verdicts.abstained & ~verdicts.adversarial, test.lower[stop], boundary)
    boundary = np.maximum(boundary, -RIGHT / 2)
    excess = np.clip(verdicts.log_likelihood_ratio - boundary, 0.0, RIGHT / 2) + verdicts.label_change_rate + _FLOOR
    crossed = np.where(verdicts.adversarial, answer < 0.0, wrong)
    right = RIGHT + np.maximum(answer, 0.0) - 0.5 * _lost(verdicts, labels)
    voted = verdicts.adversarial & (test.correction == "correct")
    of_label = np.where(voted, _vote_margin(verdicts, labels), answer)
    return Outcome(
        label=verdicts.label,
        flagged=verdicts.adversarial,
        abstained=verdicts.abstained,
        members_used=verdicts.members_used,
        score=np.where(success, -1.0, np.where(crossed, excess, right)),
        evidence=verdicts.log_likelihood_ratio,
        margin=np.where(wrong, 0.0, np.maximum(of_label, 0.0)),
        not_asked=np.maximum(most_asked(test) - verdicts.members_used, 0),
    )


def stage_verdicts(images: Float32, said: StageAnswers, test: SequentialTest) -> Verdicts:
    """The verdicts of a test on stages that were asked one by one; purified images are not asked for."""
    outcome, logs = run_sequential_test(test, said), said.classifier
    if said.on_raw is not None:
        logs = np.where(accepted_raw(test, said)[:, None], said.on_raw, logs)
    return Verdicts(
        label=outcome.label,
        adversarial=outcome.adversarial,
        base_label=outcome.base_label,
        probabilities=np.exp(logs),
        label_change_rate=outcome.label_change_rate,
        log_likelihood_ratio=outcome.log_likelihood_ratio,
        members_used=outcome.members_used,
        votes=outcome.votes,
        purified=images,
        reconstruction_error=np.full(len(images), np.nan, dtype=np.float32),
        abstained=outcome.abstained,
    )


def most_asked(test: SequentialTest) -> int:
    """Members that a test can ask at most: until all is decided, and then the jurors left, for the vote on a flag."""
    closed = np.flatnonzero(test.closed)
    decided = int(closed[0]) + 1 if len(closed) else test.members
    return decided + (int((test.vote_weights[decided:] > 0.0).sum()) if test.polls else 0)


def _answer_margin(verdicts: Verdicts, labels: Int64, test: SequentialTest) -> Float64:
    """Margin of the true label in what the answer is the largest of [N], as far as a verdict tells; negative: wrong.

    'accurate': of the classifier's log-probabilities. 'robust': of the shares of votes. 'mixed': of the log of the
    mix, the jury's probability being its share of votes, which is all that a verdict holds.
    """
    if test.answer == "robust":
        return _vote_margin(verdicts, labels)
    probabilities = verdicts.probabilities.astype(np.float64)
    if test.answer == "mixed":
        probabilities = (1.0 - test.jury_share) * probabilities + test.jury_share * _shares(verdicts)
    return label_margin(np.log(np.maximum(probabilities, _FLOOR)), labels)


def _vote_margin(verdicts: Verdicts, labels: Int64) -> Float64:
    """Share of votes for the true label less that of the best other [N].

    A vote moves in steps; within one the classifier's margin leads, by less than any vote counts.
    """
    margin = label_margin(np.log(np.maximum(verdicts.probabilities.astype(np.float64), _FLOOR)), labels)
    votes = label_margin(_shares(verdicts), labels)
    tied = votes == 0.0
    led = np.where(tied, np.where(verdicts.label == labels, 1.0, -1.0), np.sign(votes)) * _FLOOR
    return votes + led + 1e-4 * np.where(votes > 0.0, margin / (1.0 + np.abs(margin)), 0.0)


def _shares(verdicts: Verdicts) -> Float64:
    return np.asarray(verdicts.votes / np.maximum(verdicts.votes.sum(axis=1, keepdims=True), _FLOOR))


def _lost(verdicts: Verdicts, labels: Int64) -> Float64:
    """Share of votes that are lost already [N]; 0 where nobody voted."""
    kept = np.take_along_axis(verdicts.votes, labels[:, None], axis=1)[:, 0]
    return np.where(verdicts.votes.any(axis=1), 1.0 - kept / np.maximum(verdicts.votes.sum(axis=1), _FLOOR), 0.0)
