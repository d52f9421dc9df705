"""Made-up members with a known structure: strongly correlated through the difficulty of each input."""

import numpy as np

from s2ap_defend.sequential import StageAnswers
from s2ap_defend.types import Float32, Int64
from s2ap_train.calibration import Answers

CLASSES = 4


def correlated_answers(
    rng: np.random.Generator, count: int, disagreement: list[float], *, fooled: bool = False, wrong: float = 0.0
) -> Answers:
    """Members that find the first answer unlikely with the given rates.

    Args:
        rng: Of everything.
        count: Inputs.
        disagreement: Rate of each member.
        fooled: Whether the true label is the one that members prefer; otherwise it is the first answer.
        wrong: Share of inputs whose true label is neither.
    """
    difficulty = rng.normal(size=count)
    logits = rng.normal(scale=0.5, size=(len(disagreement), count, CLASSES))
    base = rng.integers(0, CLASSES, count)
    other = (base + 1) % CLASSES
    for i, rate in enumerate(disagreement):
        threshold = np.quantile(difficulty + rng.normal(size=count), 1.0 - rate)
        differs = difficulty + rng.normal(size=count) > threshold
        logits[i, np.arange(count), np.where(differs, other, base)] += 4.0
    logp = (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype(np.float32)
    label = other if fooled else np.where(rng.random(count) < wrong, (base + 2) % CLASSES, base)
    return answers_of(logp, base, label)


def voted(votes: list[list[bool]], *, right: bool = True) -> Answers:
    """Members that agree or disagree as told, two classes, the first answer is 0.

    Args:
        votes: Whether each member disagrees with each input [n][N].
        right: Whether the first answer is right.
    """
    differs = np.array(votes)
    logp = np.where(differs[..., None], [[np.log(0.1), np.log(0.9)]], [[np.log(0.9), np.log(0.1)]]).astype(np.float32)
    base = np.zeros(differs.shape[1], dtype=np.int64)
    return answers_of(logp, base, base if right else base + 1)


def answers_of(members: Float32, first: Int64, label: Int64) -> Answers:
    """Answers of members [n, N, K] next to a classifier that says the first answers [N] with probability .9."""
    classes = members.shape[2]
    classifier = np.full((len(first), classes), 0.1 / (classes - 1))
    classifier[np.arange(len(first)), first] = 0.9
    return Answers(StageAnswers(np.log(classifier).astype(np.float32), members), first, label)
