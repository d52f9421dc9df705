"""A score model of realistic weights: random ones hide what only a denoiser's gradients show."""

import numpy as np
import pytest
import torch

from s2ap_train.purifier import ScoreTraining, UNet, train_score_model
from s2ap_train.recipe import load_recipe
from s2ap_train.training import Run
from tests.export.defended_files import abstaining_model_path, tiny_model_path, tiny_stages
from tests.export.small_recipe import small_parts

__all__ = ["abstaining_model_path", "small_parts", "tiny_model_path", "tiny_stages"]  # fixtures, used by name


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    """64 test digits [64, 1, 8, 8]."""
    return load_recipe("digits").load_data().test.images[:64]


@pytest.fixture(scope="session")
def trained_net() -> UNet:
    """A score model that was trained on digits for a few seconds."""
    return trained((1, 2))


@pytest.fixture(scope="session")
def flat_net() -> UNet:
    """Such a score model of one resolution: its graph is half as large."""
    return trained((1,))


def trained(multipliers: tuple[int, ...]) -> UNet:
    """A score model of 400 digits and these multiples of eight channels, by resolution."""
    torch.set_num_threads(1)
    images = load_recipe("digits").load_data().train.images[:400]
    config = ScoreTraining(width=8, multipliers=multipliers, epochs=6, average_decay=0.9)
    found = train_score_model(images, config, run=Run(0))
    assert found.history[-1]["validation_error"] < 0.6  # 1 is what the identity leaves
    return found.net
