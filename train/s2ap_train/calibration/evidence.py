"""What one answer of one member says: bin edges and log-likelihood increments, fitted on clean and fooled inputs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from s2ap_defend.sequential import (
    NEAR_TIE,
    Evidence,
    SequentialTest,
    Signal,
    SignalName,
    member_scores,
    signal_scores,
)
from s2ap_defend.types import Float32, Float64
from s2ap_train.calibration.answers import Answers

SMOOTHING = 0.5
"""Added to every count, so that a bin that no clean input of the sample fell into is not proof."""
FEWEST_BINS = 6
"""Of a signal, also where members only agree or disagree."""


@dataclass(frozen=True)
class MemberTables:
    """Edges and increments of n members with K bins, as in SequentialTest.

    Attributes:
        evidence: 'margin' or 'surprise'.
        edges: float32 [n, K - 1].
        increments: float64 [n, K].
    """

    evidence: Evidence
    edges: Float32
    increments: Float64

    def only_of(self, members: int) -> "MemberTables":
        """The tables with nothing from members after the first so many: they only vote."""
        increments = self.increments.copy()
        increments[members:] = 0.0
        return MemberTables(self.evidence, self.edges, increments)

    def of(self, answers: Answers) -> Float64:
        """Increments that each member gives each input [n, N]."""
        scores = member_scores(self.evidence, answers.said.members, answers.first)
        rows = zip(self.edges, self.increments, scores, strict=True)
        return np.stack([table[np.searchsorted(edges, score, side="right")] for edges, table, score in rows])


def fit_tables(clean: Answers, fooled: Answers, bins: int) -> MemberTables:
    """Tables of every member from its answers on clean and on fooled inputs.

    Two bins are the votes 'agrees' and 'disagrees' (weighted members); more are bins of the surprise, -log p of the
    first answer, between quantiles of the pooled scores, clean and fooled weighing the same. Counts are smoothed by one
    half. Each increment is the log-likelihood ratio of its bin, non-decreasing in the score: neighbouring bins that
    would contradict that are merged. A member that separates nothing gets zeros.
    """
    evidence: Evidence = "margin" if bins == 2 else "surprise"
    edge = None if bins > 2 else NEAR_TIE
    scores = (member_scores(evidence, part.said.members, part.first) for part in (clean, fooled))
    fitted = [_fitted(negative, positive, bins, edge) for negative, positive in zip(*scores, strict=True)]
    return MemberTables(
        evidence, np.stack([edges for edges, _ in fitted]), np.stack([increments for _, increments in fitted])
    )


def fit_signals(test: SequentialTest, names: Sequence[SignalName], clean: Answers, fooled: Answers) -> SequentialTest:
    """The test with the tables of signals, fitted as those of a member with as many bins are.

    Args:
        test: Without signals; its members are in the answers' order.
        names: The signals.
        clean: Clean inputs whose first answer is right.
        fooled: Attacked inputs whose first answer is wrong.
    """
    bins = max(test.increments.shape[1], FEWEST_BINS)
    signals = []
    for name in names:
        negative, positive = (signal_scores(test, part.said, name) for part in (clean, fooled))
        signals.append(Signal(name, *_fitted(negative, positive, bins)))
    return replace(test, signals=tuple(signals))


def _fitted(negative: Float32, positive: Float32, bins: int, edge: np.float32 | None = None) -> tuple[Float32, Float64]:
    """(edges [bins - 1], increments [bins]) of one score on clean and fooled inputs; `edge`: all edges are this."""
    edges = _pooled_quantiles(negative, positive, bins) if edge is None else np.full(bins - 1, edge, dtype=np.float32)
    counts = [
        np.bincount(np.searchsorted(edges, part, side="right"), minlength=bins) + SMOOTHING
        for part in (negative, positive)
    ]
    return edges, np.log(increasing_ratio(counts[1] / counts[1].sum(), counts[0] / counts[0].sum()))


def increasing_ratio(above: Float64, below: Float64) -> Float64:
    """Ratio above / below of masses in ordered bins, made non-decreasing by merging neighbours.

    Pool-adjacent-violators on masses: the isotonic maximum-likelihood estimate of a likelihood ratio.

    Args:
        above: Mass of each bin [K], not negative.
        below: Mass of each bin [K], positive.
    """
    blocks: list[tuple[float, float, int]] = []
    for up, down in zip(above.tolist(), below.tolist(), strict=True):
        blocks.append((up, down, 1))
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            last, before = blocks.pop(), blocks.pop()
            blocks.append((before[0] + last[0], before[1] + last[1], before[2] + last[2]))
    if len(blocks) == 1:  # everything merged: equal masses are exactly so, and the logarithm is 0
        ratio = math.fsum(above) / math.fsum(below)
        return np.full(len(above), 1.0 if math.isclose(ratio, 1.0, rel_tol=1e-12) else ratio)
    return np.repeat([up / down for up, down, _ in blocks], [size for *_, size in blocks])


def cross_fitted_evidence(clean: Answers, fooled: Answers, bins: int, folds: int = 5) -> tuple[Float64, Float64]:
    """Increments on clean [n, N] and fooled inputs [n, M], each from tables that its image did not fit.

    Tables flatter the inputs that fitted them, the more so the fewer they are and the more bins there are; an order
    that is chosen on flattered evidence prefers the members that fitted noise best. Folds are images modulo `folds`:
    an image and its attacked copies lie in one.
    """
    fold_of_clean, fold_of_fooled = clean.images % folds, fooled.images % folds
    evidence = np.zeros((clean.members, len(clean))), np.zeros((fooled.members, len(fooled)))
    for held in range(folds):
        fitting = clean.keep(fold_of_clean != held), fooled.keep(fold_of_fooled != held)
        if not all(map(len, fitting)):
            continue  # nothing to compare with: no evidence
        tables = fit_tables(*fitting, bins)
        evidence[0][:, fold_of_clean == held] = tables.of(clean.keep(fold_of_clean == held))
        evidence[1][:, fold_of_fooled == held] = tables.of(fooled.keep(fold_of_fooled == held))
    return evidence


def _pooled_quantiles(negative: Float32, positive: Float32, bins: int) -> Float32:
    """Edges [bins - 1] between quantiles of both samples together, each weighing the same."""
    size = min(len(negative), len(positive))
    places = (np.arange(size) + 0.5) / size
    pooled = np.concatenate([np.quantile(part, places) for part in (negative, positive)])
    return np.asarray(np.quantile(pooled, np.arange(1, bins) / bins), dtype=np.float32)


def binary_rates(clean: Answers, fooled: Answers) -> tuple[Float64, Float64]:
    """Smoothed disagreement rates (q0 [n], q1 [n]) of the members on clean and on fooled inputs."""
    counts = ((part.disagreements.sum(axis=1), len(part)) for part in (clean, fooled))
    q0, q1 = ((disagree + SMOOTHING) / (total + 2 * SMOOTHING) for disagree, total in counts)
    return np.asarray(q0, dtype=np.float64), np.asarray(q1, dtype=np.float64)
