"""A purifier in front of classifiers, as an attacker that knows all of them sees it: torch functions, no file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.decision_record import Sees
from s2ap_defend.types import Bool, Float32, Int64
from s2ap_train.adaptive.systems import never_flagged
from s2ap_train.attacks.right_images import BATCH, Classifier, in_batches
from s2ap_train.compute.bfloat16 import widened
from s2ap_train.statistics.outcome import Outcome

if TYPE_CHECKING:
    from s2ap_train.adaptive.views import View
    from s2ap_train.purifier.gradient_path import GradientPath
    from s2ap_train.purifier.variants import Variant

__all__ = ["UnflaggingSystem", "variant_view"]


class UnflaggingSystem:
    """A network, or a chain of them, that answers a label and never flags.

    Args:
        log_probabilities: Images [N, C, H, W] in [0, 1] -> log-probabilities [N, K].
    """

    def __init__(self, log_probabilities: Classifier) -> None:
        self._log_probabilities = log_probabilities

    def __call__(self, images: Float32, labels: Int64) -> Outcome:
        """Outcome of the labels; the score is the margin of the true label."""
        return never_flagged(in_batches(self._log_probabilities, torch.from_numpy(images), BATCH).numpy(), labels)

    def right(self, images: Float32, labels: Int64) -> Bool:
        """Images whose label is the true one [N]."""
        return np.asarray(~self(images, labels).success)


def variant_view(
    variant: Variant,
    classify: Classifier,
    members: Sequence[Classifier] = (),
    *,
    sees: Sequence[Sees] | None = None,
    draws: int = 1,
) -> View:
    """What the attacker computes with: log-probabilities of the classifier, on the purified image, and of the members.

    Args:
        variant: The purifier.
        classify: Images [N, C, H, W] -> logits or log-probabilities [N, K].
        members: The same, in the order in which they are asked.
        sees: What each member sees; None: all see the purified image.
        draws: Purifications that are averaged, for one that draws noise: expectation over transformation (Athalye et
            al. 2018, arXiv 1707.07397). The mean is of log-probabilities, so its gradient is the mean gradient.
    """
    wired = tuple(sees) if sees is not None else ("purified",) * len(members)

    def once(images: Tensor, path: GradientPath, count: int | None) -> tuple[Tensor, Tensor | None]:
        purified = variant.purify(images, path)
        answers = [
            widened(member(purified if seen == "purified" else images)).log_softmax(1)
            for member, seen in zip(members[:count], wired[:count], strict=True)
        ]
        return widened(classify(purified)).log_softmax(1), torch.stack(answers) if answers else None

    def view(images: Tensor, path: GradientPath, count: int | None) -> tuple[Tensor, Tensor | None]:
        if draws == 1 or not variant.stochastic or path == "none":
            return once(images, path, count)
        results = [once(images, path, count) for _ in range(draws)]
        answered = [m for _, m in results if m is not None]
        mean = torch.stack([c for c, _ in results]).mean(0)
        return mean, torch.stack(answered).mean(0) if answered else None

    return view
