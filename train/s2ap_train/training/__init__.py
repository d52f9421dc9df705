"""Training of classifiers: natural or adversarial, with weights chosen on a validation set."""

from s2ap_train.attacks.accuracy import accuracy, robust_accuracy
from s2ap_train.storage.stopwatch import OnEpoch
from s2ap_train.training.batches import (
    Batch,
    apply_masks,
    augment,
    batches,
    cosine,
    draw_batch,
    global_random_state,
    shifted,
)
from s2ap_train.training.collapse import CollapseWatch
from s2ap_train.training.config import RobustLoss, TrainingConfig
from s2ap_train.training.data import TrainingData
from s2ap_train.training.epoch_choice import EpochChoice
from s2ap_train.training.epochs import EpochState, run_epochs
from s2ap_train.training.loop import Training, classes_of, train_classifier
from s2ap_train.training.losses import adversarial_examples, robust_loss, start_noise
from s2ap_train.training.run import Run
from s2ap_train.training.state import JudgedState, MaskUpdate
from s2ap_train.training.validation import accuracies, validate, validate_alike

__all__ = [
    "Batch",
    "CollapseWatch",
    "EpochChoice",
    "EpochState",
    "JudgedState",
    "MaskUpdate",
    "OnEpoch",
    "RobustLoss",
    "Run",
    "Training",
    "TrainingConfig",
    "TrainingData",
    "accuracies",
    "accuracy",
    "adversarial_examples",
    "apply_masks",
    "augment",
    "batches",
    "classes_of",
    "cosine",
    "draw_batch",
    "global_random_state",
    "robust_accuracy",
    "robust_loss",
    "run_epochs",
    "shifted",
    "start_noise",
    "train_classifier",
    "validate",
    "validate_alike",
]
