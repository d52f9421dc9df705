import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s2ap_defend.sequential import StageAnswers, run_sequential_test
from s2ap_train.adaptive.budget import AdaptiveBudget
from s2ap_train.adaptive.purified import UnflaggingSystem, variant_view
from s2ap_train.calibration import Jury
from s2ap_train.data import ImageSet
from s2ap_train.hardening.decision_choice.attack import Attacked, answer_logs, attack_answer
from s2ap_train.purifier.variants import off

ANSWERS = [
    Jury((1.0, 0.5, 0.25, 0.0), (0,), "robust"),
    Jury((1.0, 1.0, 1.0, 0.0), (0, 1), "mixed", jury_share=0.7, amplification=2.0),
    Jury((1.0, 0.25, 0.25, 0.25), (0,), "mixed", jury_share=1.0),
    Jury((1.0, 1.0, 1.0, 1.0), (), "accurate"),
]


@pytest.mark.parametrize("jury", ANSWERS, ids=lambda jury: f"{jury.answer} {jury.jury_share}")
def test_the_answer_that_is_attacked_is_that_of_the_reference(jury: Jury) -> None:
    rng = np.random.default_rng(0)
    logs = np.log(rng.dirichlet(np.full(5, 0.7), (5, 300))).clip(-20.0).astype(np.float32)
    found = answer_logs(jury, torch.from_numpy(logs[0]), torch.from_numpy(logs[1:])).argmax(1).numpy()
    expected = run_sequential_test(jury.unflagged(), StageAnswers(logs[0], logs[1:])).label
    same = found == expected
    assert same.mean() >= (0.97 if jury.answer == "robust" else 1.0)  # a tied vote may go another way


def linear(direction: list[float], sharp: float) -> nn.Module:
    """Two classes of four pixels: which side of .5 the weighted mean of the pixels lies."""

    class Network(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            side = sharp * (images.flatten(1) - 0.5) @ torch.tensor(direction)
            return torch.stack([-side, side], dim=1)

    return Network()


def right_under_attack(jury: Jury, classify: nn.Module, members: list[nn.Module]) -> float:
    """Share of images whose answer is right, at .06 from the boundary of the robust direction and an eps of .05."""
    x = np.full((20, 1, 2, 2), 0.5, dtype=np.float32)
    x[:10] += 0.06
    x[10:] -= 0.06
    data = ImageSet(x, np.repeat([1, 0], 10))
    view = variant_view(off(), classify, members, sees=["raw"] * len(members))
    work = AdaptiveBudget(steps=10, cheap_steps=10, restarts=1, targets=1, thorough=False)
    found = attack_answer(jury, view, Attacked(data, 0.05, work, 0), [])
    return float(
        UnflaggingSystem(lambda images: answer_logs(jury, *view(images, "exact", None)))
        .right(found, data.labels)
        .mean()
    )


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
