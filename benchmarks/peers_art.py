"""What the Adversarial Robustness Toolbox offers, as one of the systems that stand next to a defended file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from peers_systems import Answers
from torch import nn

from s2ap_defend.types import Float32


@dataclass
class ArtPipeline:
    """Feature squeezing and a binary detector of inputs, from the Adversarial Robustness Toolbox.

    The detector is a network of the classifier's make that was trained to tell clean images from those of PGD.

    Attributes:
        classifier: The network.
        detector: Another of two classes, untrained.
        clean: Clean images that the detector learns from [N, C, H, W].
        attacked: The same attacked [N, C, H, W].
        epochs: Of its training.
    """

    classifier: nn.Module
    detector: nn.Module
    clean: Float32
    attacked: Float32
    epochs: int = 20
    bits: int = 3
    _squeeze: Any = field(init=False)
    _classify: Any = field(init=False)
    _detect: Any = field(init=False)

    def __post_init__(self) -> None:
        """Wrap the network and train the detector.

        Raises:
            ImportError: If the toolbox is not installed; it is of the extra [crosscheck].
        """
        from art.defences.detector.evasion import BinaryInputDetector
        from art.defences.preprocessor import FeatureSqueezing

        self._squeeze = FeatureSqueezing(clip_values=(0.0, 1.0), bit_depth=self.bits)
        self._classify = self._wrapped(self.classifier)
        learner = self._wrapped(self.detector, optimizer=torch.optim.Adam(self.detector.parameters(), lr=1e-3))
        self._detect = BinaryInputDetector(learner)
        images = np.concatenate([self.clean, self.attacked])
        labels = np.repeat([0, 1], [len(self.clean), len(self.attacked)])
        self._detect.fit(images, labels, batch_size=50, nb_epochs=self.epochs)

    def __call__(self, images: Float32) -> Answers:
        """Labels of the squeezed images; flags of the detector."""
        squeezed = self._squeeze(images)[0].astype(np.float32)  # float64, which the network does not take
        labels = self._classify.predict(squeezed, batch_size=len(images)).argmax(axis=1)
        _, flagged = self._detect.detect(images, batch_size=len(images))
        return Answers(labels, np.asarray(flagged, dtype=bool), 2.0)

    def _wrapped(self, model: nn.Module, **more: Any) -> Any:  # noqa: ANN401
        from art.estimators.classification import PyTorchClassifier

        with torch.no_grad():
            classes = model(torch.from_numpy(self.clean[:1])).shape[1]
        return PyTorchClassifier(
            model,
            nn.CrossEntropyLoss(),
            self.clean.shape[1:],
            classes,
            clip_values=(0.0, 1.0),
            device_type="cpu",
            **more,
        )
