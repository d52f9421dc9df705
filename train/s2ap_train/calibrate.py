"""Calibration: from what the members said of held-out inputs to the tables of the sequential test.

Graded evidence in bins with a monotone log-likelihood table, greedy order by detection power, Wald's boundary for
'clean' and a conformal boundary for 'adversarial' (Bates et al. 2023, arXiv 2104.08279): on inputs exchangeable with
the calibration inputs the false-alarm rate is at most alpha, however the members are correlated. It says nothing
about the detection of attacks that were not measured.
"""

import math
from dataclasses import dataclass

import numpy as np

from s2ap_defend.manifest import TestTables
from s2ap_defend.sequential import NEAR_TIE, SequentialTest, member_scores, run_sequential_test, wald_boundaries
from s2ap_defend.types import Bool, Float32, Float64, Int64


@dataclass(frozen=True)
class Detection:
    """Settings of the sequential test.

    Attributes:
        alpha: False-alarm rate on clean inputs that the classifier gets right.
        beta: Miss rate of Wald's clean boundary, a design value.
        bins: Evidence bins of one member.
        min_accept: Members that must be asked before 'clean' may be decided; 'adversarial' may be decided earlier.
        vote_members: A flagged input goes on until this many members have voted.
        wave: Members evaluated together.
    """

    alpha: float = 0.05
    beta: float = 0.05
    bins: int = 6
    min_accept: int = 4
    vote_members: int = 8
    wave: int = 4


@dataclass(frozen=True)
class Answers:
    """What the classifier and all members said of one set of inputs.

    Attributes:
        log_probabilities: Members' log-probabilities on the purified images [n, N, K].
        base_label: The classifier's label [N].
        label: True label [N].
    """

    log_probabilities: Float32
    base_label: Int64
    label: Int64

    def keep(self, rows: Bool) -> "Answers":
        """Return the chosen inputs."""
        return Answers(self.log_probabilities[:, rows], self.base_label[rows], self.label[rows])

    def reorder(self, order: Int64) -> "Answers":
        """Return the answers with members in another order."""
        return Answers(self.log_probabilities[order], self.base_label, self.label)

    @property
    def right(self) -> Bool:
        """Inputs that the classifier gets right [N]."""
        return np.asarray(self.base_label == self.label)

    @property
    def disagreement_rates(self) -> Float64:
        """Share of inputs on which each member's label differs from the base label [n]."""
        margins = member_scores("margin", self.log_probabilities, self.base_label)
        return np.asarray((margins >= NEAR_TIE).mean(axis=1), dtype=np.float64)


@dataclass(frozen=True)
class Calibration:
    """The result: which member is asked when, and the tables in that order.

    Attributes:
        order: Index of the member that is asked first, second, ... [n].
        tables: Tables for the manifest and the graph.
        clean_disagreement_rates: q0 of each member in the asked order [n].
        adversarial_disagreement_rates: q1 of each member in the asked order [n].
    """

    order: Int64
    tables: TestTables
    clean_disagreement_rates: Float64
    adversarial_disagreement_rates: Float64


def calibrate(clean: Answers, attacked: Answers, held_out: Answers, config: Detection) -> Calibration:
    """Fit order, bins and increments on `clean` and `attacked`, and the alarm boundary on `held_out`.

    Args:
        clean: Clean inputs of the fitting split; those that the classifier gets wrong are left out.
        attacked: Attacked inputs; those that the classifier still gets right are left out.
        held_out: Clean inputs that fitted nothing.
        config: Settings.

    Raises:
        ValueError: If too few inputs are left to fit or to reach alpha.
    """
    clean, fooled, held_out = clean.keep(clean.right), attacked.keep(~attacked.right), held_out.keep(held_out.right)
    if len(clean.label) < 20 or len(fooled.label) < 20:
        raise ValueError(
            f"calibration needs 20 clean inputs that are classified right and 20 attacked ones that are classified "
            f"wrong, got {len(clean.label)} and {len(fooled.label)}"
        )
    edges, increments = evidence_tables(clean, fooled, config.bins)
    order = greedy_order(_evidence(clean, edges, increments), _evidence(fooled, edges, increments))
    members = len(order)
    lower_value, _ = wald_boundaries(config.alpha, config.beta)
    lower = np.full(members, lower_value)
    lower[: min(config.min_accept, members) - 1] = -math.inf
    waves = tuple(min(config.wave, members - start) for start in range(0, members, config.wave))
    unbounded = SequentialTest(
        evidence="surprise",
        edges=edges[order],
        increments=increments[order],
        lower=lower,
        upper=np.full(members, math.inf),
        final_threshold=math.inf,
        vote_members=0,
        base_vote_weight=1.0,
        waves=waves,
    )
    boundary = conformal_boundary(running_maximum(unbounded, held_out.reorder(order)), config.alpha)
    vote_members = min(config.vote_members, members)
    tables = TestTables(
        kind="graded evidence, conformal alarm boundary, Wald clean boundary",
        evidence="surprise",
        edges=tuple(tuple(row) for row in edges[order].astype(float).tolist()),
        increments=tuple(tuple(row) for row in increments[order].tolist()),
        lower=tuple(None if math.isinf(value) else value for value in lower.tolist()),
        upper=(boundary,) * members,
        truncation="clean",
        vote_members=vote_members,
        base_vote_weight=1.0,
        waves=waves,
        alpha=config.alpha,
        beta=config.beta,
        calibration_samples=len(held_out.label),
    )
    weight = base_vote_weight(tables.to_test(), clean.reorder(order), attacked.reorder(order))
    return Calibration(
        order=order,
        tables=tables.model_copy(update={"base_vote_weight": weight}),
        clean_disagreement_rates=clean.reorder(order).disagreement_rates,
        adversarial_disagreement_rates=fooled.reorder(order).disagreement_rates,
    )


def evidence_tables(clean: Answers, fooled: Answers, bins: int) -> tuple[Float32, Float64]:
    """Bin edges [n, bins - 1] and monotone log-likelihood increments [n, bins] of every member.

    Edges are quantiles of the pooled surprise, clean and attacked weighing the same; counts are smoothed by one half;
    increments are made non-decreasing in the surprise by isotonic regression.
    """
    from sklearn.isotonic import IsotonicRegression

    of_clean = member_scores("surprise", clean.log_probabilities, clean.base_label)
    of_fooled = member_scores("surprise", fooled.log_probabilities, fooled.base_label)
    levels = np.arange(1, bins) / bins
    edges = np.zeros((len(of_clean), bins - 1), dtype=np.float32)
    increments = np.zeros((len(of_clean), bins))
    for i, (negative, positive) in enumerate(zip(of_clean, of_fooled, strict=True)):
        size = min(len(negative), len(positive))
        pooled = np.concatenate([np.quantile(part, (np.arange(size) + 0.5) / size) for part in (negative, positive)])
        edges[i] = np.quantile(pooled, levels).astype(np.float32)
        counts = [
            np.bincount(np.searchsorted(edges[i], part, side="right"), minlength=bins) + 0.5
            for part in (negative, positive)
        ]
        ratio = np.log(counts[1] / counts[1].sum()) - np.log(counts[0] / counts[0].sum())
        weights = counts[0] + counts[1]
        increments[i] = IsotonicRegression().fit(np.arange(bins), ratio, sample_weight=weights).predict(np.arange(bins))
    return edges, increments


def greedy_order(clean: Float64, fooled: Float64) -> Int64:
    """Order in which each further member raises the area under the ROC curve of the summed evidence most.

    Args:
        clean: Increments of every member on clean inputs [n, N].
        fooled: The same on inputs that fool the classifier [n, M].
    """
    from sklearn.metrics import roc_auc_score

    truth = np.concatenate([np.zeros(clean.shape[1]), np.ones(fooled.shape[1])])
    both = np.concatenate([clean, fooled], axis=1)
    total = np.zeros(both.shape[1])
    left = list(range(len(both)))
    order: list[int] = []
    while left:
        best = max(left, key=lambda i: (roc_auc_score(truth, total + both[i]), -i))
        total = total + both[best]
        order.append(best)
        left.remove(best)
    return np.array(order, dtype=np.int64)


def running_maximum(test: SequentialTest, answers: Answers) -> Float64:
    """Largest log-likelihood ratio of each input up to the stop of a test that cannot raise an alarm [N]."""
    largest = np.full(len(answers.label), -math.inf)
    for stop in range(1, test.members + 1):
        prefix = SequentialTest(
            evidence=test.evidence,
            edges=test.edges[:stop],
            increments=test.increments[:stop],
            lower=test.lower[:stop],
            upper=np.full(stop, math.inf),
            final_threshold=math.inf,
            vote_members=0,
            base_vote_weight=1.0,
            waves=(stop,),
        )
        outcome = run_sequential_test(prefix, answers.log_probabilities[:stop], answers.base_label)
        largest = np.maximum(largest, outcome.log_likelihood_ratio)
    return largest


def conformal_boundary(maxima: Float64, alpha: float) -> float:
    """Smallest boundary A with P(maximum >= A) <= alpha for a new exchangeable input.

    The ceil((1 - alpha)(n + 1))-th smallest maximum, moved up by one float so that 'strictly above' becomes '>='.

    Raises:
        ValueError: If n is too small for alpha.
    """
    rank = math.ceil((1.0 - alpha) * (len(maxima) + 1))
    if rank > len(maxima):
        raise ValueError(
            f"a false-alarm rate of {alpha} needs at least {math.ceil(1 / alpha) - 1} calibration inputs that the "
            f"classifier gets right, got {len(maxima)}"
        )
    return float(np.nextafter(np.sort(maxima)[rank - 1], math.inf))


def base_vote_weight(test: SequentialTest, clean: Answers, attacked: Answers) -> float:
    """P(the base label is right | flagged) where clean and attacked inputs are equally frequent: the soft veto.

    The members' votes for the base label of a flagged input weigh this much; 0 would be a hard veto.
    """
    flagged, right = 0.0, 0.0
    for part in (clean, attacked):
        alarm = run_sequential_test(test, part.log_probabilities, part.base_label).adversarial
        flagged += float(alarm.mean())
        right += float((alarm & part.right).mean())
    return right / flagged if flagged > 0 else 1.0


def _evidence(answers: Answers, edges: Float32, increments: Float64) -> Float64:
    scores = member_scores("surprise", answers.log_probabilities, answers.base_label)
    rows = zip(edges, increments, scores, strict=True)
    return np.stack([table[np.searchsorted(edge, score, side="right")] for edge, table, score in rows])
