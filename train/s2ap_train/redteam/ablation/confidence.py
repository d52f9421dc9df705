"""The threshold of the cheapest detector, a network that flags the inputs that it is least confident of."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from s2ap_defend.types import Float32
from s2ap_train.calibration.stage_engines import StageEngines

__all__ = ["threshold_at"]


def threshold_at(stage: ModelProto, images: Float32, flagged: int) -> float:
    """The probability that a network's largest one is below for so many of these images.

    It is set on the very images on which the figures are measured, so that both systems raise as many false alarms
    there, to the image; whoever served the network would take a threshold from held-out images and be off by chance.
    Where confidences tie at the threshold, all of them are flagged: the doubt is the baseline's gain.

    Args:
        stage: `image` -> `log_probabilities`.
        images: Clean images [N, C, H, W].
        flagged: How many of them the other system flags, or does not answer, 0 to N.
    """
    if flagged == 0:
        return 0.0
    confidence = np.sort(StageEngines(None, stage, (), threads=1).ask(images).classifier.max(axis=1).astype(np.float64))
    highest = confidence[flagged - 1]
    above = confidence[confidence > highest]
    return float(np.exp((highest + above[0]) / 2)) if len(above) else 1.0
