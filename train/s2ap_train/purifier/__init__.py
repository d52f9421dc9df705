"""Purification of images by gradient: the score model, its training, and the purifier itself."""

from s2ap_train.purifier.bank import hadamard_bank
from s2ap_train.purifier.denoisers import denoising_error
from s2ap_train.purifier.purify import Purification, StepRecord, field, purify, trajectory
from s2ap_train.purifier.score import ScoreTraining, TrainedScore, train_score_model
from s2ap_train.purifier.unet import UNet, build

__all__ = [
    "Purification",
    "ScoreTraining",
    "StepRecord",
    "TrainedScore",
    "UNet",
    "build",
    "denoising_error",
    "field",
    "hadamard_bank",
    "purify",
    "train_score_model",
    "trajectory",
]
