from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s2ap_train.adaptive.budget import AdaptiveBudget
from s2ap_train.calibration import Jury
from s2ap_train.data import ImageSet
from s2ap_train.hardening.decision_choice.defence import Attacked, Decided, Networks, attack_decision
from s2ap_train.purifier import UNet
from s2ap_train.recipe import load_recipe


def linear(direction: list[float], sharp: float) -> nn.Module:
    """Two classes of four pixels: which side of .5 the weighted mean of the pixels lies."""

    class Network(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            side = sharp * (images.flatten(1) - 0.5) @ torch.tensor(direction)
            return torch.stack([-side, side], dim=1)

    return Network()


def joined(jury: Jury, classify: nn.Module, members: list[nn.Module]) -> Decided:
    """The answer of a jury over members that see raw images, flagging nothing."""
    recipe = load_recipe("digits")
    score = UNet(1, *recipe.score_model.architecture((1, 8, 8))).eval().requires_grad_(False)
    networks = Networks(recipe, classify, tuple(members), score, (1, 2, 2))
    n = len(members)
    return Decided(networks, jury.unflagged(), np.arange(n), tuple("raw" for _ in range(n)), "off")


def right_under_attack(jury: Jury, classify: nn.Module, members: list[nn.Module]) -> float:
    """Share of images whose answer is right, at .06 from the boundary of the robust direction and an eps of .05."""
    x = np.full((20, 1, 2, 2), 0.5, dtype=np.float32)
    x[:10] += 0.06
    x[10:] -= 0.06
    data = ImageSet(x, np.repeat([1, 0], 10))
    work = AdaptiveBudget(steps=10, cheap_steps=10, restarts=1, targets=1, thorough=False)
    decided = joined(jury, classify, members)
    found = attack_decision(decided, Attacked(data, 0.05, work, 0), "wrong label").images
    assert np.abs(found - x).max() <= 0.05 + 1e-6
    return float((decided(found, data.labels).label == data.labels).mean())


ROBUST = [0.25, 0.25, 0.25, 0.25]
FOOLED = [2.0, -1.75, 2.0, -1.75]
"""As sure as ROBUST of clean images, and thrown by a change of .05 of every pixel in its own direction."""


def test_a_robust_jury_keeps_what_the_budget_cannot_move() -> None:
    jury = Jury((1.0, 1.0), (0,), "robust")
    assert right_under_attack(jury, linear(FOOLED, 20.0), [linear(ROBUST, 20.0)] * 2) == 1.0


def test_a_juror_that_the_attacker_controls_loses_its_labels() -> None:
    jury = Jury((1.0, 0.5), (0,), "robust")
    assert right_under_attack(jury, linear(ROBUST, 20.0), [linear(FOOLED, 20.0), linear(ROBUST, 20.0)]) == 0.0
    patient = Jury((0.5, 1.0), (0,), "robust")
    assert right_under_attack(patient, linear(ROBUST, 20.0), [linear(FOOLED, 20.0), linear(ROBUST, 20.0)]) == 1.0


def test_a_natural_classifier_with_half_of_the_mix_loses_its_labels() -> None:
    half = Jury((1.0, 1.0), (0,), "mixed", jury_share=0.5)
    little = Jury((1.0, 1.0), (0,), "mixed", jury_share=0.9, amplification=3.0)
    for jury, right in ((half, 0.0), (little, 1.0)):
        assert right_under_attack(jury, linear(FOOLED, 40.0), [linear(ROBUST, 20.0)] * 2) == right


class Mean(nn.Module):
    """Two classes: how bright an image is."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images.flatten(1).mean(1)
        return torch.stack([bright, 1.0 - bright], dim=1)


@pytest.mark.parametrize("purify", ["always", "suspicious", "off"])
def test_every_wiring_can_be_read_from_what_was_asked_once(purify: str) -> None:
    sees = ("raw", "purified")
    networks = replace(joined(Jury((1.0, 1.0), (0,)), Mean(), [Mean(), Mean()]).networks, image_shape=(1, 8, 8))
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)).numpy()
    read = networks.ask(images).wired(sees, purify)  # type: ignore[arg-type]
    asked = networks.said(images, sees, purify)  # type: ignore[arg-type]
    for name in ("classifier", "members", "on_raw", "reconstruction_error"):
        assert np.array_equal(getattr(read, name), getattr(asked, name)), name
    assert np.array_equal(asked.members[0], asked.members[1]) is (purify == "off")
    assert (asked.on_raw is not None) is (purify == "suspicious")
