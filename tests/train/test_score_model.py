import json

import numpy as np
import pytest
import torch

from s2ap_defend.errors import RecipeError
from s2ap_train.data import load_digits
from s2ap_train.purifier import ScoreTraining, UNet, build, denoising_error, train_score_model

SHORT = ScoreTraining(epochs=4, width=8, batch_size=50)


def test_a_few_epochs_denoise_digits_better_than_the_best_linear_guess() -> None:
    digits = load_digits(0)
    trained = train_score_model(digits.train.images, SHORT, seed=0, validation=digits.validation.images)
    sigmas = [0.1, 0.3, 0.6]
    errors = denoising_error(trained.net, torch.from_numpy(digits.validation.images), sigmas)
    variance = float(digits.train.images.var())
    for error, sigma in zip(errors, sigmas, strict=True):
        assert error < variance / (variance + sigma**2)  # what n = sigma (y - mean) / (variance + sigma^2) achieves
    assert trained.validation_error < 0.6
    assert trained.history[-1]["validation_error"] < trained.history[0]["validation_error"]


def test_the_identity_has_a_denoising_error_of_one() -> None:
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert denoising_error(lambda y, _: torch.zeros_like(y), images, [0.1, 0.5]) == [1.0, 1.0]


def test_the_same_seed_trains_the_same_weights_and_leaves_the_global_random_state_alone() -> None:
    images = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)
    config = ScoreTraining(epochs=1, width=8)
    before = torch.random.get_rng_state()
    first = train_score_model(images, config, seed=3).net.state_dict()
    again = train_score_model(images, config, seed=3).net.state_dict()
    other = train_score_model(images, config, seed=4).net.state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_every_epoch_is_reported() -> None:
    images = np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32)
    seen: list[int] = []
    trained = train_score_model(
        images, ScoreTraining(epochs=2, width=8), seed=0, on_epoch=lambda epoch, _: seen.append(epoch)
    )
    assert seen == [0, 1]
    assert [set(record) for record in trained.history] == [{"loss", "validation_error"}] * 2


def test_a_score_model_is_rebuilt_from_its_architecture_as_json() -> None:
    net = UNet(3, 16, (1, 2, 2), data_mean=0.47, data_std=0.25, seed=5)
    rebuilt = build(json.loads(json.dumps(net.architecture())))
    rebuilt.load_state_dict(net.state_dict())
    noisy = torch.rand(2, 3, 12, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(noisy, 0.2), rebuilt(noisy, 0.2))


def test_one_sigma_for_all_equals_the_same_sigma_for_each() -> None:
    net = UNet(1, 8, seed=1)
    noisy = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(noisy, 0.3), net(noisy, torch.full((3,), 0.3)))


def test_an_untrained_score_model_is_the_best_linear_guess() -> None:
    net = UNet(1, 8, data_mean=0.4, data_std=0.3)
    noisy = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(noisy, 0.4), (noisy - 0.4) * 0.4 / (0.3**2 + 0.4**2))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"name": "ncsn"}, "unknown score model 'ncsn'"),
        ({"name": "unet", "width": 12}, "multiple of 8"),
        ({"name": "unet", "depth": 3}, "cannot be built"),
        ({"name": "unet", "data_std": 0.0}, "data_std must be positive"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_refused(architecture: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(architecture)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "counts start at 1"),
        ({"sigma_min": 0.7}, "sigma_min <= sigma_max"),
        ({"lr": 0.0}, "lr is above 0"),
    ],
)
def test_a_training_that_cannot_run_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ScoreTraining(**changes)  # type: ignore[arg-type]


def test_images_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(RecipeError, match="7x8 cannot be halved 1 times"):
        train_score_model(np.zeros((4, 1, 7, 8), dtype=np.float32), ScoreTraining(epochs=1), seed=0)
