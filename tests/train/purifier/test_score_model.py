import json
import math

import numpy as np
import pytest
import torch

from s2ap_defend.errors import RecipeError
from s2ap_train.data import load_digits
from s2ap_train.models.cost import parameter_count
from s2ap_train.purifier import ScoreTraining, UNet, build, denoising_error, train_score_model
from s2ap_train.purifier.sizes import Size, pass_flops
from s2ap_train.training import Run

SHORT = ScoreTraining(epochs=4, width=8, batch_size=50)


def test_a_few_epochs_denoise_digits_better_than_the_best_linear_guess() -> None:
    digits = load_digits(0)
    trained = train_score_model(digits.train.images, SHORT, run=Run(0), validation=digits.validation.images)
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
    first = train_score_model(images, config, run=Run(3)).net.state_dict()
    again = train_score_model(images, config, run=Run(3)).net.state_dict()
    other = train_score_model(images, config, run=Run(4)).net.state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_every_epoch_is_reported() -> None:
    images = np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32)
    seen: list[int] = []
    trained = train_score_model(
        images, ScoreTraining(epochs=2, width=8), run=Run(0, on_epoch=lambda epoch, _: seen.append(epoch))
    )
    assert seen == [0, 1]
    for record in trained.history:
        loss, mean, *by_sigma = record
        assert (loss, mean) == ("loss", "validation_error")
        assert by_sigma == [f"validation_error_{sigma:.3g}" for sigma in ScoreTraining().validation_sigmas()]
        assert record[mean] == pytest.approx(sum(record[key] for key in by_sigma) / 4)


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
        ({"size": "huge"}, "size 'huge' is not known; choose from standard, fast"),
        ({"width": 12}, "width is 12; give a multiple of 8"),
        ({"multipliers": ()}, r"multipliers are \(\); give one number from 1 for each level"),
    ],
)
def test_a_training_that_cannot_run_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ScoreTraining(**changes)  # type: ignore[arg-type]


def test_images_that_cannot_be_halved_as_often_as_asked_are_refused() -> None:
    images = np.zeros((4, 1, 7, 8), dtype=np.float32)
    with pytest.raises(
        RecipeError, match=r"7x8 cannot be halved 1 times; use fewer multipliers than \(1, 2\), or none"
    ):
        train_score_model(images, ScoreTraining(epochs=1, multipliers=(1, 2)), run=Run(0))


@pytest.mark.parametrize(
    ("image_shape", "size", "architecture"),
    [
        ((1, 8, 8), "standard", (16, (1, 2))),
        ((1, 8, 8), "fast", (8, (1, 2))),
        ((1, 28, 28), "standard", (32, (1, 2, 2))),  # 28, 14, 7: seven halves no more
        ((3, 32, 32), "standard", (64, (1, 2, 2))),
        ((3, 32, 32), "fast", (32, (1, 2, 2))),
        ((3, 64, 64), "standard", (64, (1, 2, 2, 2))),
        ((3, 64, 64), "fast", (32, (1, 2, 2, 2))),
        ((1, 7, 7), "standard", (16, (1,))),
        ((3, 66, 64), "standard", (64, (1, 2))),
    ],
)
def test_the_images_decide_the_size(
    image_shape: tuple[int, int, int], size: Size, architecture: tuple[int, tuple[int, ...]]
) -> None:
    config = ScoreTraining(size=size)
    assert config.architecture(image_shape) == architecture
    net = UNet(image_shape[0], *architecture)
    noisy = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0))
    assert net(noisy, 0.2).shape == noisy.shape


def test_what_is_given_counts_more_than_the_size() -> None:
    config = ScoreTraining(size="fast", width=24, multipliers=(1, 3))
    assert config.architecture((3, 32, 32)) == (24, (1, 3))
    assert ScoreTraining(width=24).architecture((3, 32, 32)) == (24, (1, 2, 2))


def counted(channels: int, width: int, multipliers: tuple[int, ...], side: int) -> tuple[int, int]:
    """(parameters, FLOPs of a pass) of a U-Net, layer by layer: 3x3 and 2x2 convolutions and linear layers."""
    widths = [width * multiplier for multiplier in multipliers]
    sides = [side // 2**level for level in range(len(widths))]
    embedding = 4 * width
    linear = [(2 * width, embedding), (embedding, embedding), (embedding, 2 * width)]  # embedding, norm of the tail
    convolutions = [(channels, width, 9, side), (width, channels, 9, side)]  # from, to, kernel, side of the larger end
    for c, s in [*zip(widths, sides, strict=True)] * 2 + [(widths[-1], sides[-1])]:  # blocks down and up, and between
        convolutions += [(c, c, 9, s)] * 2
        linear += [(embedding, 2 * c)]
    strided = [(widths[i], widths[i + 1], 4, sides[i + 1]) for i in range(len(widths) - 1)]
    parameters = sum(i * o + o for i, o in linear) + sum(i * o * k + o for i, o, k, _ in convolutions)
    parameters += sum(2 * i * o * k + i + o for i, o, k, _ in strided)  # down, and up again
    flops = sum(2 * i * o for i, o in linear) + sum(2 * i * o * k * s**2 for i, o, k, s in convolutions)
    return parameters, flops + sum(2 * 2 * i * o * k * s**2 for i, o, k, s in strided)


@pytest.mark.parametrize(
    ("image_shape", "size", "parameters", "flops"),
    [  # no more than the specification's table, which counts concatenated skips; ours are added
        ((1, 8, 8), "standard", 0.115e6, None),
        ((3, 32, 32), "standard", 2.6e6, 1.4e9),
        ((3, 32, 32), "fast", 0.68e6, 0.35e9),
    ],
)
def test_a_size_costs_what_its_layers_add_up_to_and_no_more_than_specified(
    image_shape: tuple[int, int, int], size: Size, parameters: float, flops: float | None
) -> None:
    width, multipliers = ScoreTraining(size=size).architecture(image_shape)
    net = UNet(image_shape[0], width, multipliers)
    found = parameter_count(net), pass_flops(net, image_shape)
    assert found == counted(image_shape[0], width, multipliers, image_shape[1])
    assert 0.8 * parameters < found[0] <= parameters
    assert flops is None or 0.5 * flops < found[1] <= flops


@pytest.mark.parametrize(
    ("low", "high"), [(1e-300, 0.6), (0.0, 0.6), (0.3, 0.2), (0.1, float("inf")), (0.1, float("nan"))]
)
def test_noise_levels_that_no_network_can_tell_are_refused(low: float, high: float) -> None:
    with pytest.raises(RecipeError, match=r"need 0\.0001 <= sigma_min <= sigma_max, found .* float32 cannot tell"):
        ScoreTraining(sigma_min=low, sigma_max=high)


def test_a_narrow_range_of_noise_is_validated_at_its_middle_alone() -> None:
    (only,) = ScoreTraining(sigma_min=0.2, sigma_max=0.2002).validation_sigmas()
    assert only == pytest.approx(math.sqrt(0.2 * 0.2002), rel=1e-12)
    names = {f"{sigma:.3g}" for sigma in ScoreTraining(sigma_min=0.1, sigma_max=0.1051).validation_sigmas()}
    assert len(names) == 4, "four levels have four names"
