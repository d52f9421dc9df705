"""Several networks as one: what an attacker that knows the ensemble climbs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from s2ap_train.attacks.right_images import Classifier


def joint_network(classifier: Classifier, members: Sequence[Classifier]) -> Classifier:
    """Images [N, C, H, W] -> mean of the classifier's log-probabilities and the members' mean ones [N, K].

    Half the weight is the classifier's: an attacker gains nothing as long as it is right. Raising the cross-entropy of
    the label against this network is the joint attack.

    Args:
        classifier: The network that is defended, in evaluation mode like the members.
        members: The members that the attacker knows; without any, the classifier's log-probabilities are all.
    """

    def network(images: Tensor) -> Tensor:
        own = classifier(images).log_softmax(1)
        if not members:
            return own
        theirs = torch.stack([member(images).log_softmax(1) for member in members]).mean(0)
        return (own + theirs) / 2

    return network


def jury_network(jurors: Sequence[Classifier]) -> Classifier:
    """Images [N, C, H, W] -> logarithm of the jurors' mean probability [N, K]."""

    def network(images: Tensor) -> Tensor:
        each = torch.stack([juror(images).log_softmax(1) for juror in jurors])
        return each.logsumexp(0) - math.log(len(jurors))

    return network
