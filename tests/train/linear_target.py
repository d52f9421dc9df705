"""A target that is one linear classifier of two classes: every attack on it has an answer in closed form."""

import numpy as np
import torch

from s2ap_train.adaptive.purified import UnflaggingSystem
from s2ap_train.adaptive.search import AdaptiveBudget
from s2ap_train.data import ImageSet
from s2ap_train.redteam.attacks.attack import Task
from s2ap_train.redteam.target import Target


def classifier(weights, bias):
    """Images [N, C, H, W] -> log-probabilities of the logits (0, bias + w x); the margin of label 1 is the second."""

    def log_probabilities(images):
        score = bias + images.flatten(1) @ weights
        return torch.stack([torch.zeros_like(score), score], dim=1).log_softmax(1)

    return log_probabilities


def target_of(classify):
    """It answers, never flags, and has no members."""
    return Target(
        name="linear",
        system=UnflaggingSystem(classify),
        view=lambda images, path, members: (classify(images).log_softmax(1), None),  # noqa: ARG005
        classify=classify,
    )


def with_margin(weights, margin, count=1):
    """(target, grey images of class 1 [N, 1, S, S] whose logit is `margin`)."""
    side = round(len(weights) ** 0.5)
    images = np.full((count, 1, side, side), 0.5, dtype=np.float32)
    bias = margin - 0.5 * float(weights.sum())
    return target_of(classifier(weights, bias)), ImageSet(images, np.ones(count, dtype=np.int64))


def task_of(data, **changes):
    given = {"eps": 0.1, "l2": 0.5, "pixels": 2, "seed": 0, "budget": AdaptiveBudget.quick()}
    return Task(data=data, **{**given, **changes})
