"""A served file as the black box of the Adversarial Robustness Toolbox."""

from __future__ import annotations

from typing import Any

import numpy as np

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.types import Float32
from s2ap_train.redteam.attacks.cross_checks import library

__all__ = ["art_black_box"]


def art_black_box(classifier: DefendedClassifier, *, flag: bool = False) -> Any:  # noqa: ANN401 - ART has no types
    """A served file as the `BlackBoxClassifier` of the Adversarial Robustness Toolbox: answers alone, no gradient.

    It tells labels, as one-hot rows: the final label, that of flagged images included. An attack by decisions, such as
    `HopSkipJump`, is what fits it.

    Args:
        classifier: The file.
        flag: Whether there is a class more, the last, for what is flagged or not answered. Take it for targeted
            attacks; an untargeted one would count being flagged as its success.

    Raises:
        RecipeError: If ART is not installed.
    """
    estimators: Any = library("art.estimators.classification", "adversarial-robustness-toolbox")
    classes = len(classifier.classes) + flag

    def predict(images: Float32) -> Float32:
        verdicts = classifier(np.ascontiguousarray(images, dtype=np.float32).clip(0.0, 1.0))
        unanswered = verdicts.adversarial | verdicts.abstained
        label = np.where(unanswered, classes - 1, verdicts.label) if flag else verdicts.label
        return np.eye(classes, dtype=np.float32)[label]

    return estimators.BlackBoxClassifier(
        predict, input_shape=classifier.input_shape, nb_classes=classes, clip_values=(0.0, 1.0)
    )
