"""A linear classifier of 4x4 images whose attacks can be worked by hand."""

import numpy as np
import torch

WEIGHTS = torch.tensor([0.1, -0.3, 0.2, -0.9, 0.4, -0.5, 0.7, -0.2, 0.6, -0.8, 0.3, -0.1, 0.5, -0.6, 0.8, -0.4])


def two_classes(bias):
    """Images [N, 1, 4, 4] -> logits (0, bias + w x); w is least in pixel 3, then 9, 13, 5."""

    def logits(images):
        score = bias + images.flatten(1) @ WEIGHTS
        return torch.stack([torch.zeros_like(score), score], dim=1)

    return logits


class Counted:
    def __init__(self, classifier):
        self.classifier, self.asked = classifier, 0

    def __call__(self, images):
        self.asked += len(images)
        return self.classifier(images)


def even(value, count=1):
    return np.full((count, 1, 4, 4), value, dtype=np.float32), np.ones(count, dtype=np.int64)


def moved(attacked, images):
    return [sorted(np.flatnonzero(row).tolist()) for row in (attacked != images).reshape(len(images), -1)]
