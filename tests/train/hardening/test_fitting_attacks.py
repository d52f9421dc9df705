"""Attacks on the fitting images: how many are in memory at once, and that it does not change what is found."""

import numpy as np
import pytest
import torch

from s2ap_train.attacks.pgd import pgd
from s2ap_train.data import ImageSet
from s2ap_train.hardening.fitting_attacks import EPS_FACTORS, RELATIVE_STEP, STEPS, attacked_jury, attacked_together

EPS = 0.1


def network(seen):
    """Scores of two classes, one product a pixel, so that a batch changes no bit; counts the images of a call."""

    def scores(images):
        seen.add(len(images))
        brightness = (images - 0.5).flatten(1).cumsum(1)[:, -1]
        return torch.stack([brightness, -brightness], 1)

    return scores


@pytest.mark.parametrize(("count", "side", "most"), [(600, 2, 256), (5, 1024, 1)])
@pytest.mark.parametrize("attack", [attacked_together, attacked_jury])
def test_as_many_images_at_once_as_memory_is_meant_to_hold(attack, count, side, most):
    random = np.random.default_rng(0)
    data = ImageSet(random.random((count, 1, side, side), dtype=np.float32), random.integers(0, 2, count))
    seen = set()
    one = network(seen)
    found = (
        attack(one, [one], data, eps=EPS, seed=3)
        if attack is attacked_together
        else attack([one], data, eps=EPS, seed=3)
    )
    assert max(seen) == most
    assert [images.shape for images in found] == [data.images.shape] * len(EPS_FACTORS)
    for factor, images in zip(EPS_FACTORS, found, strict=True):
        assert 0 < np.abs(images - data.images).max() <= factor * EPS + 1e-6


def test_the_batches_change_nothing():
    random = np.random.default_rng(1)
    data = ImageSet(random.random((300, 1, 2, 2), dtype=np.float32), random.integers(0, 2, 300))
    one = network(set())
    generator = torch.Generator().manual_seed(3 + 2)
    x, y = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    for factor, images in zip(EPS_FACTORS, attacked_jury([one], data, eps=EPS, seed=3), strict=True):
        radius = factor * EPS
        whole = pgd(one, x, y, eps=radius, steps=STEPS, step_size=RELATIVE_STEP * radius, generator=generator)
        np.testing.assert_array_equal(images, whole.numpy())
