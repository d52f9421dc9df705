"""What classifiers are trained on."""

from __future__ import annotations

from dataclasses import dataclass

from s2ap_train.attacks.accuracy import Array
from s2ap_train.data import Splits
from s2ap_train.models import Classifier, ModelTable, create


@dataclass(frozen=True)
class TrainingData:
    """What members are trained on.

    Attributes:
        images: Training images, float32 [N, C, H, W] in [0, 1].
        labels: Their labels, int64 [N].
        validation: Images and labels for every choice; never the test set.
        classes: Number of classes K.
    """

    images: Array
    labels: Array
    validation: tuple[Array, Array]
    classes: int

    @classmethod
    def of(cls, splits: Splits) -> TrainingData:
        """The training and the validation images of a data set."""
        validation = splits.validation.images, splits.validation.labels
        return cls(splits.train.images, splits.train.labels, validation, len(splits.classes))

    @property
    def arrays(self) -> tuple[Array, Array, tuple[Array, Array]]:
        """Images, labels and the validation set, in the order of `train_classifier`."""
        return self.images, self.labels, self.validation

    def create(self, model: ModelTable, seed: int) -> Classifier:
        """A new network for these images."""
        _, channels, height, width = self.images.shape
        return create(model, (int(channels), int(height), int(width)), self.classes, seed)
