"""Attacks on images that are not square, and on those of four channels."""

import numpy as np
import pytest
import torch

from s2ap_train.attacks.catalogue import ATTACKS
from s2ap_train.models import create

QUICK = {
    "cw-l2": {"steps": 3},
    "jsma": {"fraction": 0.02},
    "deepfool": {"steps": 3},
    "one-pixel": {"population": 5, "generations": 2},
    "local-search": {"rounds": 2},
    "fia": {"masks": 2},
    "square": {"queries": 30},
}


@pytest.mark.parametrize("shape", [(3, 20, 12), (4, 9, 23)])
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_takes_images_of_any_shape(name: str, shape: tuple[int, int, int]) -> None:
    model = create({"name": "small_cnn", "widths": [4, 4]}, shape, 3).eval()
    images = np.random.default_rng(0).random((4, *shape), dtype=np.float32)
    with torch.no_grad():
        labels = model(torch.from_numpy(images)).argmax(1).numpy()  # what is wrong already would be left as it is
    attack = ATTACKS[name]
    settings = {**QUICK.get(name, {}), **({"eps": 0.3} if attack.budget == "eps" else {})}
    attacked = attack.run(model, images, labels, seed=0, **settings)
    assert attacked.shape == images.shape
    assert attacked.dtype == np.float32
    assert (attacked >= 0).all()
    assert (attacked <= 1).all()
    assert np.abs(attacked - images).max() > 0.001 or name in {"one-pixel", "jsma"}
