"""The closed-form Gaussian denoiser against its theory, and score models against it."""

import math

import pytest
import torch

from s2ap_train.data import load_digits
from s2ap_train.purifier import ScoreTraining, UNet, denoising_error, train_score_model
from s2ap_train.purifier.denoisers import (
    DenoisingError,
    FullGaussian,
    StationaryGaussian,
    denoising_errors,
    fit_gaussian,
    log_spaced,
)
from s2ap_train.training import Run

SIGMA = 0.4


def draw(mean, root, count, seed):
    """Images of N(mean, root root^T) [count, 1, 4, 4]."""
    generator = torch.Generator().manual_seed(seed)
    return mean.reshape(1, 4, 4) + (torch.randn(count, 16, generator=generator) @ root.T).reshape(count, 1, 4, 4)


@pytest.fixture(scope="module")
def gaussian_data():
    """Images of a 16-dimensional Gaussian: (training, test)."""
    generator = torch.Generator().manual_seed(5)
    mean = torch.rand(16, generator=generator)
    root = 0.15 * torch.randn(16, 16, generator=generator)
    return draw(mean, root, 2000, 1), draw(mean, root, 2000, 2)


def test_one_pixel_is_worked_by_hand():
    """Pixels 0 and 1: mean 1/2, variance 1/4. At sigma 1/2, y = 1 is explained half by noise: D = 3/4, e = 1/2."""
    images = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    for kind in (FullGaussian, StationaryGaussian):
        denoiser = kind(images)
        assert float(denoiser(torch.ones(1, 1, 1, 1), 0.5)) == pytest.approx(0.5)
        assert denoiser.expected_error(0.5) == pytest.approx(0.5)


def test_the_noise_it_predicts_is_that_of_the_posterior_mean():
    """D(y) = mean + C (C + sigma^2)^-1 (y - mean), by solving instead of by eigenvectors."""
    images = torch.rand(50, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    noisy = torch.rand(4, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    flat, y = images.flatten(1).double(), noisy.flatten(1).double()
    covariance = torch.cov(flat.T, correction=0)
    solved = torch.linalg.solve(covariance + SIGMA**2 * torch.eye(18), (y - flat.mean(0)).T).T
    expected = flat.mean(0) + solved @ covariance
    found = noisy - SIGMA * FullGaussian(images)(noisy, SIGMA)
    torch.testing.assert_close(found.flatten(1), expected.float())


def test_on_gaussian_data_its_error_is_the_closed_form(gaussian_data):
    denoiser = FullGaussian(gaussian_data[0])
    for images in gaussian_data:  # those it was fitted to, and others
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
        left = (denoiser(images + SIGMA * noise, SIGMA) - noise).square().flatten(1).mean(1)  # [N]
        three_errors = 3 * float(left.std()) / math.sqrt(len(left))
        assert abs(float(left.mean()) - denoiser.expected_error(SIGMA)) < three_errors


def test_on_gaussian_data_nothing_beats_it(gaussian_data):
    training, test = gaussian_data
    best = FullGaussian(training)
    net = train_score_model(
        training.numpy(),
        ScoreTraining(epochs=4, width=16, multipliers=(1, 2), sigma_min=0.3, sigma_max=0.5),
        run=Run(0),
    ).net
    others = {
        "network": net,
        "pixel by pixel": UNet(1, 8, data_mean=float(training.mean()), data_std=float(training.std())),
        "stationary": StationaryGaussian(training),
        "another sigma": lambda y, sigma: best(y, 1.3 * sigma),
        "shrunk": lambda y, sigma: 0.9 * best(y, sigma),
        "identity": lambda y, _: torch.zeros_like(y),
    }
    (mine,) = denoising_error(best, test, [SIGMA])
    better = [name for name, other in others.items() if denoising_error(other, test, [SIGMA])[0] <= mine]
    assert better == []


def test_the_closed_form_holds_on_all_data_with_these_second_moments():
    """The error of a linear denoiser depends on mean and covariance alone, and digits are nothing like Gaussian."""
    images = torch.from_numpy(load_digits(0).train.images)
    for kind in (FullGaussian, StationaryGaussian):
        denoiser = kind(images)
        for sigma in (0.1, 0.5):
            noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
            left = (denoiser(images + sigma * noise, sigma) - noise).square().flatten(1).mean(1)
            three_errors = 3 * float(left.std()) / math.sqrt(len(left))
            assert abs(float(left.mean()) - denoiser.expected_error(sigma)) < three_errors
    assert FullGaussian(images).expected_error(0.2) < StationaryGaussian(images).expected_error(0.2)


def test_images_that_any_shift_leaves_as_likely_need_no_more_than_the_stationary_one():
    """All cyclic shifts of some images: their covariance is circulant, which the Fourier basis diagonalises."""
    some = torch.rand(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    images = torch.cat([some.roll((i, j), (2, 3)) for i in range(4) for j in range(4)])
    full, stationary = FullGaussian(images), StationaryGaussian(images)
    noisy = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(stationary(noisy, SIGMA), full(noisy, SIGMA))
    assert stationary.expected_error(SIGMA) == pytest.approx(full.expected_error(SIGMA))


def test_a_network_trained_on_digits_beats_the_gaussian_where_digits_are_not_gaussian():
    digits = load_digits(0)
    images = torch.from_numpy(digits.validation.images)
    trained = train_score_model(digits.train.images, ScoreTraining(epochs=8), run=Run(0), validation=images.numpy())
    assert [row.sigma for row in trained.denoising] == pytest.approx(log_spaced(0.05, 0.6, 8))
    gaussian = fit_gaussian(torch.from_numpy(digits.train.images))
    for sigma in (0.05, 0.1, 0.2):
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
        ours, theirs = (
            (denoiser(images + sigma * noise, sigma) - noise).square().flatten(1).mean(1)  # [N]
            for denoiser in (trained.net, gaussian)
        )
        gain = theirs - ours
        assert float(gain.mean()) > 3 * float(gain.std()) / math.sqrt(len(gain))


def test_large_images_get_the_stationary_one_and_many_are_thinned_out():
    assert isinstance(fit_gaussian(torch.rand(4, 1, 28, 28)), FullGaussian)
    assert isinstance(fit_gaussian(torch.rand(4, 3, 32, 32)), StationaryGaussian)
    many = torch.arange(25_000.0).reshape(-1, 1, 1, 1)
    assert float(fit_gaussian(many).mean) == float(many[::3].mean())


def test_errors_of_both_are_measured_on_the_same_noise():
    images = torch.rand(300, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    gaussian = FullGaussian(images)
    (row,) = denoising_errors(gaussian, gaussian, images, [0.3])
    assert row == DenoisingError(0.3, row.gaussian, row.gaussian, gaussian.expected_error(0.3))


def test_many_images_have_the_error_of_all_together():
    """300 images go through the network in two parts; the sum is over all of them."""
    images = torch.rand(300, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(2024))
    (found,) = denoising_error(lambda y, _: y, images, [0.3])
    expected = (images + 0.3 * noise - noise).square().sum() / noise.square().sum()
    assert found == pytest.approx(float(expected), rel=1e-5)
