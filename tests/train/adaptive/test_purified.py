"""Attacks on a purifier in front of a classifier, on a mixture whose score model is exact."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from tests.train.toy_scores import mixture_score
from torch import Tensor

from s2ap_train.adaptive import AdaptiveBudget
from s2ap_train.adaptive.objectives import classifier_objective
from s2ap_train.adaptive.purified import variant_view
from s2ap_train.adaptive.search import Descent, adaptive_attack
from s2ap_train.adaptive.systems import never_flagged, score_of
from s2ap_train.attacks.square import square_search
from s2ap_train.data import ImageSet
from s2ap_train.purifier import Purification, hadamard_bank
from s2ap_train.purifier.variants import Variant, bit_depth, noise_and_denoise, off, purification
from s2ap_train.statistics.outcome import Outcome

SHAPE = (1, 4, 4)
CENTRES = 0.5 + 0.2 * torch.randint(0, 2, (3, *SHAPE), generator=torch.Generator().manual_seed(3)).float().sub(0.5)
COUNT = 30
SPREAD = 0.1  # wide enough that the denoiser still has a gradient: one that snaps to modes masks it
PURIFIER = Purification(sigma=0.15, radius=0.2, steps=2, step_size=0.7, rho=0.05, bank_size=4)


def classify(images: Tensor) -> Tensor:
    """Logits [N, 3] of a linear classifier that, like a trained one, also listens to a direction of no meaning."""
    flat, centres = images.flatten(1) - 0.5, CENTRES.flatten(1) - 0.5
    noise = torch.randn(3, 16, generator=torch.Generator().manual_seed(7))
    weights = centres + 0.05 * noise
    return 10 * (flat @ weights.T - (weights * centres).sum(dim=1) / 2)


def data() -> ImageSet:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, COUNT)
    noise = random.normal(0, 0.02, (COUNT, *SHAPE))
    return ImageSet((CENTRES.numpy()[labels] + noise).astype(np.float32), labels)


def ours(config: Purification = PURIFIER) -> Variant:
    bank = hadamard_bank(config.bank_size, SHAPE, config.bank_seed)
    return purification("ours", mixture_score(CENTRES, SPREAD), bank, config)


class Purified:
    def __init__(self, variant: Variant) -> None:
        self.variant = variant

    def __call__(self, images: np.ndarray, labels: np.ndarray) -> Outcome:
        with torch.no_grad():
            return never_flagged(classify(self.variant.purify(torch.from_numpy(images))).log_softmax(1).numpy(), labels)


def robust(variant: Variant, eps: float, *, path: str = "exact", steps: int = 20) -> np.ndarray:
    """Images that stay right under a descent along one path [N]."""
    system, view = Purified(variant), variant_view(variant, classify)
    plan = [Descent(classifier_objective("margin"), path, "random")]  # type: ignore[arg-type]
    budget = AdaptiveBudget(steps=steps, cheap_steps=steps, restarts=1)
    result = adaptive_attack(system, view, plan, data(), eps=eps, budget=budget, seed=0)
    return ~system(result.images, data().labels).success


def test_without_attack_everything_is_right_and_the_purifier_moves_images_to_their_modes() -> None:
    images, labels = torch.from_numpy(data().images), data().labels
    purified = ours().purify(images)
    to_mode = [(x - CENTRES[labels]).flatten(1).norm(dim=1) for x in (images, purified)]
    assert (to_mode[1] < to_mode[0]).all()
    assert not Purified(ours())(data().images, labels).success.any()


def test_over_eps_the_white_box_attack_leaves_nothing() -> None:
    left = [robust(ours(), eps).mean() for eps in (0.0, 0.05, 0.08, 0.1, 0.15)]
    assert left[0] == 1.0
    assert left[-1] == 0.0
    assert all(later <= earlier for earlier, later in pairwise(left))


def test_square_breaks_nothing_that_the_gradient_does_not() -> None:
    white_box = robust(ours(), 0.1)
    score = score_of(Purified(ours()))
    images = square_search(score, data().images, data().labels, eps=0.1, queries=200, seed=0)
    black_box = ~Purified(ours())(images, data().labels).success
    assert 0 < white_box.sum() < COUNT
    assert not (white_box & ~black_box).any()


def test_more_steps_of_the_attack_do_not_help_the_defence() -> None:
    left = [robust(ours(), 0.1, steps=steps).sum() for steps in (1, 5, 20, 60)]
    assert left[0] > left[-1]
    assert all(later <= earlier + 2 for earlier, later in pairwise(left))  # another random start


def test_an_attacker_who_knows_the_purifier_breaks_more_than_one_who_does_not() -> None:
    oblivious = robust(ours(), 0.1, path="none").sum()
    assert robust(off(), 0.1).sum() < robust(ours(), 0.1).sum() < oblivious


def test_rounding_survives_its_own_gradient_and_falls_to_bpda() -> None:
    assert robust(bit_depth(3), 0.15).mean() > 0.9
    assert robust(bit_depth(3), 0.15, path="identity").mean() < 0.5
    assert robust(bit_depth(3), 0.15, path="straight_through").mean() < 0.5


@pytest.mark.parametrize("path", ["identity", "exact", "straight_through", "surrogate"])
def test_every_path_has_the_values_of_the_purifier(path: str) -> None:
    images = torch.from_numpy(data().images) + 0.1
    torch.testing.assert_close(ours().purify(images, path), ours().purify(images), rtol=0, atol=1e-6)  # type: ignore[arg-type]


def test_the_identity_has_the_gradient_of_the_classifier_at_the_purified_image() -> None:
    images = torch.from_numpy(data().images).requires_grad_()
    purified = ours().purify(images.detach()).requires_grad_()
    (bpda,) = torch.autograd.grad(classify(ours().purify(images, "identity"))[:, 0].sum(), images)
    (expected,) = torch.autograd.grad(classify(purified)[:, 0].sum(), purified)
    torch.testing.assert_close(bpda, expected)
    (exact,) = torch.autograd.grad(classify(ours().purify(images, "exact"))[:, 0].sum(), images)
    assert not torch.allclose(exact, expected, rtol=1e-2)


def test_members_see_the_purified_image_and_only_as_many_as_are_asked() -> None:
    images = torch.from_numpy(data().images)
    view = variant_view(ours(), classify, [lambda x: 2 * classify(x), lambda x: classify(1 - x)])
    label, members = view(images, "exact", 1)
    purified = ours().purify(images)
    torch.testing.assert_close(label, classify(purified).log_softmax(1))
    assert members is not None
    assert members.shape == (1, COUNT, 3)
    torch.testing.assert_close(members[0], (2 * classify(purified)).log_softmax(1))
    assert view(images, "exact", 0)[1] is None
    _, everybody = view(images, "none", None)
    assert everybody is not None
    torch.testing.assert_close(everybody[1], classify(1 - images).log_softmax(1))


def test_a_purifier_with_noise_is_averaged_over_its_draws() -> None:
    images = torch.from_numpy(data().images)

    def answer(draws: int, seed: int) -> Tensor:
        variant = noise_and_denoise(mixture_score(CENTRES, SPREAD), 0.3, seed)
        return variant_view(variant, classify, draws=draws)(images, "exact", 0)[0]

    singly = torch.stack([answer(1, seed) for seed in range(40)]).std(0).mean()
    averaged = torch.stack([answer(8, seed) for seed in range(40)]).std(0).mean()
    assert float(singly / averaged) == pytest.approx(8**0.5, rel=0.25)
