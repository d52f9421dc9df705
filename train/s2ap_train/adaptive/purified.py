"""A purifier in front of classifiers, as an attacker who knows all of them sees it: torch functions, no file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.types import Bool, Float32, Int64
from s2ap_train.adaptive.systems import never_flagged
from s2ap_train.purifier.purify import pass_through
from s2ap_train.statistics.outcome import Outcome

if TYPE_CHECKING:
    from s2ap_train.adaptive.search import Path, View
    from s2ap_train.purifier.variants import Variant

__all__ = ["UnflaggingSystem", "passed", "variant_view"]

Classify = Callable[[Tensor], Tensor]
_BATCH = 256


class UnflaggingSystem:
    """A network, or a chain of them, that answers a label and never flags.

    Args:
        log_probabilities: Images [N, C, H, W] in [0, 1] -> log-probabilities [N, K].
    """

    def __init__(self, log_probabilities: Classify) -> None:
        self._log_probabilities = log_probabilities

    def __call__(self, images: Float32, labels: Int64) -> Outcome:
        """Outcome of the labels; the score is the margin of the true label."""
        with torch.no_grad():
            parts = [self._log_probabilities(part) for part in torch.split(torch.from_numpy(images), _BATCH)]
        return never_flagged(torch.cat(parts).numpy(), labels)

    def right(self, images: Float32, labels: Int64) -> Bool:
        """Images whose label is the true one [N]."""
        return np.asarray(~self(images, labels).success)


def variant_view(variant: Variant, classify: Classify, members: Sequence[Classify] = (), *, draws: int = 1) -> View:
    """What the attacker computes with: log-probabilities of the classifier and of the members on the purified image.

    Args:
        variant: The purifier.
        classify: Images [N, C, H, W] -> logits or log-probabilities [N, K].
        members: The same, in the order in which they are asked; they see the purified image, too.
        draws: Purifications that are averaged, for one that draws noise: expectation over transformation (Athalye et
            al. 2018, arXiv 1707.07397). The mean is of log-probabilities, so its gradient is the mean gradient.
    """

    def once(images: Tensor, path: Path, count: int | None) -> tuple[Tensor, Tensor | None]:
        purified = passed(variant, images, path)
        asked = members[:count] if count is not None else members
        answers = [member(purified).log_softmax(1) for member in asked]
        return classify(purified).log_softmax(1), torch.stack(answers) if answers else None

    def view(images: Tensor, path: Path, count: int | None) -> tuple[Tensor, Tensor | None]:
        if draws == 1 or not variant.stochastic or path == "none":
            return once(images, path, count)
        results = [once(images, path, count) for _ in range(draws)]
        answered = [m for _, m in results if m is not None]
        mean = torch.stack([c for c, _ in results]).mean(0)
        return mean, torch.stack(answered).mean(0) if answered else None

    return view


def passed(variant: Variant, images: Tensor, path: Path) -> Tensor:
    """Images [N, C, H, W] behind the purifier; `path` decides what their gradient is, and 'none' leaves them as is.

    'exact': through every step. 'straight_through': clamps and rounding pass gradients on. 'surrogate': that of the
    J-free purifier. 'identity': as if the purifier changed nothing (BPDA, Athalye et al. 2018, arXiv 1802.00420).
    """
    match path:
        case "none":
            return images
        case "identity":
            with torch.no_grad():
                purified = variant.purify(images)
            return pass_through(purified, images)
        case "straight_through":
            return variant.straight_through(images)
        case "surrogate":
            return variant.surrogate(images)
        case _:
            return variant.purify(images)
