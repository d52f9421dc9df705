"""Whether a claim is too good: what a detector keeps at eps, a classifier could keep at half of it.

Tramer 2022, 'Detecting Adversarial Examples Is (Nearly) As Hard As Classifying Them' (arXiv 2107.11630): from a system
that is right or flags at distance eps, a classifier that is right at distance eps / 2 can be built, as robust and only
slower. Twelve of fourteen detectors that were looked at claimed more than any classifier had reached; the attacks were
weak.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from s2ap_defend.types import Bool
from s2ap_train.redteam.results import Check
from s2ap_train.statistics.paired import SIGNIFICANCE, not_weaker

__all__ = ["BEST_KNOWN", "BestKnown", "best_known", "plausibility_check"]

_NAME = "plausibility at half eps"
_ROUNDING = 1e-6


@dataclass(frozen=True)
class BestKnown:
    """The highest robust accuracy that is known of a classifier.

    Attributes:
        data: Name of the data set, lower case, letters and digits only.
        eps: l_inf radius, pixels in [0, 1].
        robust_accuracy: Under AutoAttack, share of the test set.
        source: Where it stands.
    """

    data: str
    eps: float
    robust_accuracy: float
    source: str


_MEAN_SPARSE = "Amini et al. 2024, arXiv 2406.05927, AutoAttack, as listed by RobustBench"
BEST_KNOWN = (
    BestKnown("cifar10", 8 / 255, 0.7528, f"MeanSparse WideResNet-94-16, {_MEAN_SPARSE}"),
    BestKnown("cifar100", 8 / 255, 0.4478, f"MeanSparse WideResNet-70-16, {_MEAN_SPARSE}"),
    BestKnown("imagenet", 4 / 255, 0.6212, f"MeanSparse Swin-L, {_MEAN_SPARSE}"),
)
"""Highest entries of RobustBench's lists for l_inf that were there when this was written."""


def best_known(data: str, radius: float) -> BestKnown | None:
    """The lowest bound of this table on robust accuracy at a radius; None where it has none.

    Robust accuracy falls with the radius, so what is best at a smaller radius bounds what is best at this one; nothing
    follows from a larger.
    """
    name = "".join(letter for letter in data.lower() if letter.isalnum())
    bounds = [known for known in BEST_KNOWN if known.data == name and known.eps <= radius + _ROUNDING]
    return min(bounds, key=lambda known: known.robust_accuracy, default=None)


def plausibility_check(kept: Bool, *, data: str, eps: float, measured: Mapping[str, Bool] | None = None) -> Check:
    """Compare what a defence keeps at eps with the best classifier at eps / 2.

    It fails where the defence keeps more, beyond chance: against a published figure by the exact binomial test, against
    classifiers measured on the same images by McNemar's, one-sided at `SIGNIFICANCE`. Of measured classifiers the best
    counts. A failure does not say that gradients are masked, only that the attack is likely to be weak.

    Args:
        kept: Images that no attack at eps broke: right or flagged [N].
        data: Name of the data set.
        eps: l_inf budget, pixels in [0, 1].
        measured: Classifiers by name: the same images, not broken at eps / 2 [N]; for data without published figures.
    """
    published = best_known(data, eps / 2)
    if published is not None:
        return _against_published(kept, published)
    if not measured:
        return Check(
            _NAME,
            None,
            {"kept": float(np.mean(kept))},
            f"could not be judged: no robust accuracy at {eps / 2:.4g} is known of {data!r}, and no classifier was "
            "attacked at that radius",
        )
    name = max(measured, key=lambda one: int(measured[one].sum()))
    passed, found = not_weaker({f"{name} at half eps": measured[name], "the defence at eps": kept})
    return Check(_NAME, passed, found, _meaning(passed=passed, reference=f"the classifier {name!r}, measured here"))


def _against_published(kept: Bool, published: BestKnown) -> Check:
    from scipy import stats  # type: ignore[import-untyped]

    rate = published.robust_accuracy
    p_value = float(stats.binomtest(int(kept.sum()), len(kept), rate, alternative="greater").pvalue)
    passed = p_value >= SIGNIFICANCE
    found = {"kept": float(np.mean(kept)), "best_known": rate, "best_known_eps": published.eps, "p_value": p_value}
    return Check(_NAME, passed, found, _meaning(passed=passed, reference=published.source))


def _meaning(*, passed: bool, reference: str) -> str:
    if passed:
        return f"no more images are left at eps than a classifier is known to have left at half of it ({reference})"
    return (
        "the attack is likely to be weak: as many images left at half eps would make a classifier that is "
        f"better than {reference}; do not quote the figure before a stronger attack has failed"
    )
