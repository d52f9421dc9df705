"""Attacked images on which the evidence of the members is fitted.

Several budgets, on the classifier alone and on classifier and members together: a table fitted on one oblivious
attack would trust members that are fooled together with the classifier.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from s2ap_train.attacks.pgd import pgd
from s2ap_train.data import ImageSet

EPS_FACTORS = (0.5, 1.0, 1.5)
STEPS = 10
RELATIVE_STEP = 0.25

Network = Callable[[Tensor], Tensor]
"""Images [N, C, H, W] in [0, 1] -> logits [N, K], in evaluation mode."""


def attacked_fitting_images(
    classifier: Network, members: Sequence[Network], data: ImageSet, *, eps: float, seed: int
) -> ImageSet:
    """PGD images at half, one and one and a half eps, on the classifier and on classifier and members together.

    Args:
        classifier: The network that is defended.
        members: All members.
        data: Images of the fitting split.
        eps: l_inf budget of the recipe, pixels in [0, 1].
        seed: Of the random starts.

    Returns:
        Attacked images with their true labels, six times as many as `data` holds; not all fool the classifier.
    """
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.from_numpy(data.images), torch.from_numpy(data.labels)

    def together(images: Tensor) -> Tensor:
        answers = torch.stack([member(images).log_softmax(1) for member in members]).mean(0)
        return (classifier(images).log_softmax(1) + answers) / 2

    attacked = [
        pgd(
            network,
            x,
            y,
            eps=factor * eps,
            steps=STEPS,
            step_size=RELATIVE_STEP * factor * eps,
            generator=generator,
        )
        for network in (classifier, together)
        for factor in EPS_FACTORS
    ]
    labels = np.tile(data.labels, len(attacked))
    return ImageSet(torch.cat(attacked).numpy(), labels)
