import json
import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

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
        ({"size": "huge"}, "size 'huge' is not known; choose from standard, fast, tiny"),
        ({"blocks": "thin"}, "blocks 'thin' is not known; choose from full, separable"),
        ({"teacher": "huge"}, "teacher 'huge' is not known; choose from standard, fast, tiny"),
        ({"width": 12}, "width is 12; give a multiple of 8"),
        ({"fold": 0}, "fold is 0; give the side of the squares"),
        ({"multipliers": ()}, r"multipliers are \(\); give one number from 1 for each level"),
    ],
)
def test_a_training_that_cannot_run_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ScoreTraining(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"multipliers": (1, 2, 2, 2)},
            r"7x8 cannot be halved 3 times and folded by 2: they would have to be padded to 16x16; "
            r"use fewer multipliers than \(1, 2, 2, 2\), or leave multipliers and fold to the images",
        ),
        ({"multipliers": (1,) * 5, "fold": 1}, "7x8 cannot be halved 4 times: they would have to be padded to 16x16"),
    ],
)
def test_images_that_would_be_padding_for_the_most_part_are_refused(changes: dict[str, Any], message: str) -> None:
    images = np.zeros((4, 1, 7, 8), dtype=np.float32)
    with pytest.raises(RecipeError, match=message):
        train_score_model(images, ScoreTraining(**{"epochs": 1, "fold": 2, **changes}), run=Run(0))


@pytest.mark.parametrize(
    ("image_shape", "size", "architecture"),
    [
        ((1, 8, 8), "standard", (16, (1, 2), 1)),
        ((1, 8, 8), "fast", (8, (1, 2), 1)),
        ((1, 28, 28), "standard", (32, (1, 2, 2), 1)),
        ((3, 32, 32), "standard", (64, (1, 2, 2), 1)),
        ((3, 32, 32), "fast", (32, (1, 2, 2), 1)),
        ((3, 64, 64), "standard", (64, (1, 2, 2, 2), 1)),
        ((3, 64, 64), "fast", (32, (1, 2, 2, 2), 1)),
        ((1, 7, 7), "standard", (16, (1, 2), 1)),  # padded to 8x8
        ((1, 5, 5), "standard", (16, (1,), 1)),  # 6x6 would be 44 % more pixels
        ((3, 20, 12), "standard", (16, (1, 2, 2), 1)),
        ((3, 66, 64), "fast", (64, (1, 2, 2), 2)),
        ((4, 48, 192), "fast", (64, (1, 2, 2, 2), 2)),  # as many pixels as 96x96
        ((3, 96, 96), "standard", (128, (1, 2, 2, 2), 2)),
        ((3, 224, 224), "fast", (128, (1, 2, 2, 2), 4)),
        ((1, 8, 8), "tiny", (8, (1, 2), 2)),
        ((1, 28, 28), "tiny", (16, (1, 2), 2)),
        ((3, 32, 32), "tiny", (32, (1, 2), 2)),
        ((3, 96, 96), "tiny", (64, (1, 2, 2), 4)),
        ((1, 3, 3), "tiny", (8, (1,), 1)),  # folded, it would be 16 pixels instead of 9
    ],
)
def test_the_images_decide_the_size(
    image_shape: tuple[int, int, int], size: Size, architecture: tuple[int, tuple[int, ...], int]
) -> None:
    config = ScoreTraining(size=size)
    assert config.architecture(image_shape) == architecture
    if image_shape[1] < 200:
        net = UNet(image_shape[0], *architecture)
        noisy = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0))
        assert net(noisy, 0.2).shape == noisy.shape


SIDES = (32, 33, 40, 48, 49, 64, 65, 72, 96, 97, 112, 128, 129, 160, 192, 224, 225, 256)


def test_a_pass_costs_as_much_a_pixel_at_every_side_from_32_to_256() -> None:
    def cost(height: int, width: int) -> float:
        with torch.device("meta"), FakeTensorMode():
            shape = (3, height, width)
            net = UNet(3, *ScoreTraining(size="fast").architecture(shape))
            return pass_flops(net, shape) / (height * width)

    costs = {side: cost(side, side) for side in SIDES}
    reference = costs[32]
    exact = [costs[side] for side in (48, 64, 96, 112, 128, 192, 224, 256)]
    assert all(0.95 * reference < each < 1.05 * reference for each in exact), costs
    assert all(0.95 * reference < each < 1.05 * 4 / 3 * reference for each in costs.values()), "a third more is padding"
    for shape in ((48, 192), (28, 256), (256, 64), (100, 37)):
        assert 0.95 * reference < cost(*shape) < 1.05 * 4 / 3 * reference


def test_folding_is_pixel_unshuffle_and_images_are_padded_behind_their_last_row_and_column() -> None:
    seen: list[torch.Tensor] = []
    net = UNet(2, 8, (1, 1), 2, data_mean=0.25)
    net.head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    noisy = torch.rand(3, 2, 6, 7, generator=torch.Generator().manual_seed(0))
    assert net(noisy, 0.2).shape == noisy.shape
    padded = torch.zeros(3, 2, 8, 8)
    padded[:, :, :6, :7] = noisy - 0.25
    assert torch.equal(seen[0], torch.nn.functional.pixel_unshuffle(padded, 2))


def test_what_leaves_the_folded_network_is_shuffled_back_to_where_it_came_from() -> None:
    net = UNet(1, 8, (1,), 2)
    torch.nn.init.zeros_(net.tail.weight)
    net.tail.bias.data.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))  # of each pixel of a square
    found = net(torch.full((1, 1, 4, 6), 0.5), 0.1)  # of pixels of the mean, so there is no linear guess
    torch.testing.assert_close(found / found[0, 0, 0, 0], torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat(1, 1, 2, 3))


def test_a_folded_network_is_rebuilt_from_its_record_and_a_record_without_a_fold_is_of_one_that_folds_nothing() -> None:
    net = UNet(3, 8, (1, 2), 4, seed=5)
    rebuilt = build(json.loads(json.dumps(net.architecture())), seed=5)
    noisy = torch.rand(2, 3, 30, 17, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(noisy, 0.2), rebuilt(noisy, 0.2))
    plain = UNet(3, 8, (1, 2))
    assert "fold" not in plain.architecture()
    assert build(plain.architecture()).fold == 1


def test_keys_that_came_later_are_no_part_of_the_key_of_a_stored_model_where_they_are_not_given() -> None:
    assert "fold" not in ScoreTraining().settings()
    assert ScoreTraining(fold=2).settings()["fold"] == 2
    later = {"fold", "blocks", "teacher"}
    assert ScoreTraining().settings().keys() == {one.name for one in fields(ScoreTraining)} - later
    assert later < ScoreTraining(fold=2, blocks="separable", teacher="fast").settings().keys()


@pytest.mark.parametrize("shape", [(3, 10, 7), (4, 9, 12)])
def test_rectangular_images_are_trained_on(shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(0).random((20, *shape), dtype=np.float32)
    trained = train_score_model(images, ScoreTraining(epochs=1, width=8, fold=2), run=Run(0))
    assert trained.net.fold == 2
    assert trained.net(torch.from_numpy(images), 0.3).shape == images.shape


def test_what_is_given_counts_more_than_the_size() -> None:
    config = ScoreTraining(size="fast", width=24, multipliers=(1, 3))
    assert config.architecture((3, 32, 32)) == (24, (1, 3), 1)
    assert ScoreTraining(width=24).architecture((3, 32, 32)) == (24, (1, 2, 2), 1)
    assert ScoreTraining(fold=2).architecture((3, 32, 32)) == (128, (1, 2), 2), "as much work a pixel"
    assert ScoreTraining(fold=8).architecture((3, 256, 256)) == (256, (1, 2, 2), 8), "no wider than of a fold of four"


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
    width, multipliers, fold = ScoreTraining(size=size).architecture(image_shape)
    assert fold == 1
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
