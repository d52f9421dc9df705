import math

import numpy as np
import pytest
import torch
from tests.train.linear_target import task_of, with_margin
from tests.train.toy_classifier import WEIGHTS

from s2ap_train.attacks.budget import distortion
from s2ap_train.attacks.oblivious import fgsm
from s2ap_train.data import ImageSet
from s2ap_train.redteam.attacks.attack import RedTeamAttack
from s2ap_train.redteam.attacks.candidates import best_of, into_ball
from s2ap_train.redteam.attacks.controls import ATTACKS, NOISE_DRAWS, noisy
from s2ap_train.redteam.attacks.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from s2ap_train.redteam.target import open_targets

NOISE = next(attack for attack in ATTACKS if attack.name == "noise")


def grey(count=1, channels=1, side=8, value=0.5):
    return np.full((count, channels, side, side), value, dtype=np.float32)


def textured(count=3, channels=3, side=16):
    return np.random.default_rng(0).random((count, channels, side, side), dtype=np.float32)


@pytest.mark.parametrize("corners", [True, False])
def test_noise_fills_the_ball_and_stays_inside(corners):
    images = grey(50)
    change = (noisy(images, eps=0.1, seed=0, corners=corners) - images).astype(np.float64)
    assert np.abs(change).max() <= 0.1 + 1e-7
    # 3,200 values: a sign of mean 0, or a uniform one of mean 0 and mean size eps / 2; three standard errors each
    assert abs(change.mean()) < 3 * 0.1 / math.sqrt(3200 * (1 if corners else 3))
    size = np.abs(change)
    if corners:
        np.testing.assert_allclose(size, 0.1, atol=1e-6)
    else:
        assert size.mean() == pytest.approx(0.05, abs=3 * 0.1 / math.sqrt(12 * 3200))


def test_noise_is_cut_to_the_range_of_pixels_and_decided_by_its_seed():
    images = np.concatenate([grey(value=0.0), grey(value=1.0)])
    first, second = (noisy(images, eps=0.3, seed=4, corners=True) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.min() >= 0.0
    assert first.max() <= 1.0
    assert (noisy(images, eps=0.3, seed=5, corners=True) != first).any()


def test_noise_reaches_no_more_than_chance_allows_where_one_step_of_gradient_always_wins():
    eps, count = 0.1, 400
    margin = 0.95 * eps * float(WEIGHTS.abs().sum())  # within reach of the sign of the gradient
    target, data = with_margin(WEIGHTS, margin, count)
    found = NOISE.run(target, task_of(data, eps=eps))
    # the change of the score is a sum of independent terms in [-eps |w|, eps |w|]: Hoeffding's bound, for each draw
    once = math.exp(-(margin**2) / (2 * eps**2 * float((WEIGHTS**2).sum())))
    most = 2 * NOISE_DRAWS * once
    success = target.system(found.images, data.labels).success
    assert most < 0.05
    assert success.mean() <= most + 3 * math.sqrt(most / count)
    assert target.system(fgsm(target.classify, data, eps=eps, seed=0), data.labels).success.all()


def test_noise_is_the_worst_of_its_draws():
    target, data = with_margin(WEIGHTS, 0.05, 200)
    found = NOISE.run(target, task_of(data, seed=7))
    one = noisy(data.images, eps=0.1, seed=7, corners=False)
    worst, alone = (target.system(images, data.labels) for images in (found.images, one))
    assert (worst.score <= alone.score).all()
    assert worst.success.mean() > alone.success.mean()
    assert found.notes["draws"] == len(found.notes["broken_by"]) == 2 * NOISE_DRAWS == 8
    assert sum(found.notes["broken_by"].values()) == worst.success.sum()


def test_the_best_candidate_is_the_one_of_least_score_and_breaks_are_counted_once():
    target, data = with_margin(WEIGHTS, 0.3)
    data = ImageSet(np.repeat(data.images, 3, axis=0), np.ones(3, dtype=np.int64))
    step = np.asarray(WEIGHTS.reshape(1, 1, 4, 4))
    near, far = (np.float32(data.images - length * step) for length in (0.05, 0.3))  # scores .3 - length * 4.4
    first = np.concatenate([near[:1], far[1:2], data.images[2:]])
    second = np.concatenate([far[:1], near[1:2], near[2:]])
    best, broken_by = best_of(target.system, data, {"first": first, "second": second})
    np.testing.assert_array_equal(best, np.concatenate([far[:1], far[1:2], near[2:]]))
    assert broken_by == {"first": 1, "second": 1}
    with pytest.raises(ValueError, match="no candidates"):
        best_of(target.system, data, {})


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_brought_into_the_ball_lie_on_its_surface(norm):
    clean, far = grey(2), np.random.default_rng(1).random((2, 1, 8, 8), dtype=np.float32)
    inside = into_ball(far, clean, 0.2, norm)
    linf, l2, _ = distortion(clean, inside)
    np.testing.assert_allclose(linf if norm == "linf" else l2, 0.2, rtol=1e-5)
    np.testing.assert_array_equal(into_ball(clean, clean, 0.2, norm), clean)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_zero_is_the_image_itself_and_five_is_further_away_than_one(name):
    images = textured()
    np.testing.assert_array_equal(corrupted(name, images, severity=0, seed=0), images)
    steps = [np.abs(corrupted(name, images, severity=s, seed=0) - images).mean() for s in (0, *SEVERITIES)]
    assert steps == sorted(steps)
    assert steps[0] < steps[1] < steps[-1]
    made = corrupted(name, images, severity=5, seed=3)
    assert made.dtype == np.float32
    assert 0.0 <= made.min() <= made.max() <= 1.0
    np.testing.assert_array_equal(corrupted(name, images, severity=5, seed=3), made)


def test_gaussian_noise_has_the_published_deviation_for_small_and_for_large_images():
    for side, count, expected in ((32, 8, 0.08), (80, 2, 0.18)):  # severity 3 of CIFAR-10-C and of ImageNet-C
        images = grey(count, side=side)
        change = corrupted("gaussian-noise", images, severity=3, seed=0) - images
        # cut at .5 from grey: below 2.8 deviations of .18 nothing; the standard error of a deviation is it / sqrt(2 n)
        assert change.std() == pytest.approx(expected, abs=3 * expected / math.sqrt(2 * change.size) + 0.01 * expected)


def test_contrast_and_brightness_do_what_they_say():
    images = 0.25 + 0.25 * textured()
    flat = corrupted("contrast", images, severity=2, seed=0)  # half of it is left
    np.testing.assert_allclose(
        flat - flat.mean((2, 3), keepdims=True), (images - images.mean((2, 3), keepdims=True)) / 2, atol=1e-6
    )
    np.testing.assert_allclose(flat.mean((2, 3)), images.mean((2, 3)), atol=1e-6)
    np.testing.assert_allclose(corrupted("brightness", grey(), severity=3, seed=0), 0.65, atol=1e-6)
    lighter = corrupted("brightness", images, severity=5, seed=0)  # value + .3, below 1 everywhere
    np.testing.assert_allclose(lighter.max(1), images.max(1) + 0.3, atol=1e-6)
    np.testing.assert_allclose(
        lighter / lighter.max(1, keepdims=True), images / images.max(1, keepdims=True), rtol=1e-5
    )
    np.testing.assert_allclose(
        corrupted("brightness", grey(value=0.0, channels=3), severity=1, seed=0), 0.05, atol=1e-6
    )


def test_blur_spreads_a_point_by_its_variance_and_leaves_grey_alone():
    point = grey(side=17, value=0.0)
    point[0, 0, 8, 8] = 1.0
    spread = corrupted("blur", point, severity=5, seed=0)[0, 0].astype(np.float64)  # sigma 1
    assert spread.sum() == pytest.approx(1.0, abs=1e-6)
    rows = np.arange(17) - 8
    # a normal density at whole numbers, cut at four sigma: its variance is 1 up to 2e-3 of what is cut away
    assert (spread.sum(1) * rows**2).sum() == pytest.approx(1.0, abs=2e-3)
    np.testing.assert_allclose(corrupted("blur", grey(value=0.3), severity=5, seed=0), 0.3, atol=1e-6)
    assert corrupted("blur", grey(side=1), severity=5, seed=0).shape == (1, 1, 1, 1)


def test_jpeg_keeps_even_images_to_half_a_step_of_eight_bits_in_any_number_of_channels():
    for channels in (1, 2, 3):
        images = grey(channels=channels, value=100 / 255)
        np.testing.assert_allclose(corrupted("jpeg", images, severity=5, seed=0), images, atol=1.01 / 255)


def test_an_unknown_corruption_or_severity_is_refused():
    for name, severity in (("fog", 1), ("blur", 6), ("blur", -1)):
        with pytest.raises(ValueError, match="from 0 to 5"):
            corrupted(name, grey(), severity=severity, seed=0)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_every_control_returns_legal_images_and_depends_on_its_seed_alone(
    attack: RedTeamAttack, tiny_model_path, random_images
):
    defended, _ = open_targets(tiny_model_path)
    data = ImageSet(random_images[:6], np.arange(6, dtype=np.int64))
    first, second = (attack.run(defended, task_of(data)) for _ in range(2))
    np.testing.assert_array_equal(first.images, second.images)
    assert first.images.shape == data.images.shape
    assert first.images.dtype == np.float32
    assert 0.0 <= first.images.min() <= first.images.max() <= 1.0
    assert attack.knows == "nothing"
    if attack.norm == "linf":
        assert distortion(data.images, first.images)[0].max() <= 0.1 + 1e-6


def test_controls_leave_the_global_generator_alone():
    target, data = with_margin(WEIGHTS, 0.3)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    for attack in ATTACKS:
        attack.run(target, task_of(data))
    assert torch.equal(torch.random.get_rng_state(), before)
