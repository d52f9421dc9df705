"""Score models that cost less: separable blocks, further folds, and what a large one teaches a small one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from s2ap_defend.errors import RecipeError
from s2ap_train.compute import compute_here
from s2ap_train.data import load_digits
from s2ap_train.hardening.score_model import score_model_parts
from s2ap_train.purifier import ScoreTraining, UNet, build, train_score_model
from s2ap_train.purifier.sizes import Size, pass_flops
from s2ap_train.recipe import load_recipe
from s2ap_train.training import Run


def network(size: Size, shape: tuple[int, int, int], **changes: str) -> UNet:
    config = ScoreTraining(size=size, **changes)  # type: ignore[arg-type]
    return UNet(shape[0], *config.architecture(shape), blocks=config.blocks)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64)])
def test_a_tiny_pass_is_about_a_quarter_of_a_fast_one_and_a_fast_one_of_a_standard_one(
    shape: tuple[int, int, int],
) -> None:
    standard, fast, tiny = (pass_flops(network(size, shape), shape) for size in ("standard", "fast", "tiny"))
    assert 3 < standard / fast < 4.5
    assert 3 < fast / tiny < 6


def test_separable_blocks_of_32_channels_cost_a_fifth_of_full_ones() -> None:
    # A 3x3 convolution of C channels has 9 C^2 products a pixel, its separable form 9 C + C^2: 9 * 32 / 41 = 7.0 times.
    shape = (1, 28, 28)
    full, separable = (pass_flops(network("standard", shape, blocks=blocks), shape) for blocks in ("full", "separable"))
    assert 5 < full / separable < 8


def test_a_network_of_separable_blocks_starts_as_the_linear_guess_and_is_rebuilt_from_its_record() -> None:
    noisy = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    full, separable = UNet(1, 8, seed=3), UNet(1, 8, blocks="separable", seed=3)
    torch.testing.assert_close(separable(noisy, 0.2), full(noisy, 0.2))
    assert "blocks" not in full.architecture()
    again = build(separable.architecture())
    again.load_state_dict(separable.state_dict())
    assert torch.equal(again(noisy, 0.2), separable(noisy, 0.2))
    with pytest.raises(RecipeError, match="blocks 'thin' are not known; choose from full, separable"):
        build({**separable.architecture(), "blocks": "thin"})


def test_a_network_that_starts_where_its_teacher_is_has_nothing_to_learn() -> None:
    images = load_digits(0).train.images[:20]
    teacher = UNet(1, 8, data_mean=float(images.mean()), data_std=float(torch.from_numpy(images).std()))
    config = ScoreTraining(width=8, epochs=2, batch_size=10)
    taught = train_score_model(images, config, run=Run(0), validation=images, teacher=teacher)
    assert [epoch["loss"] for epoch in taught.history] == [0.0, 0.0]
    assert train_score_model(images, config, run=Run(0), validation=images).history[0]["loss"] > 0.1


def test_a_teacher_leaves_less_noise_in_the_loss_and_no_more_in_the_images() -> None:
    digits = load_digits(0)
    images, validation = digits.train.images[:300], digits.validation.images[:50]
    large = ScoreTraining(epochs=5, width=16)
    small = replace(large, size="tiny", width=None, epochs=4)
    teacher = train_score_model(images, large, run=Run(0), validation=validation)
    alone = train_score_model(images, small, run=Run(0), validation=validation)
    taught = train_score_model(images, small, run=Run(0), validation=validation, teacher=teacher.net)
    assert taught.history[-1]["loss"] < 0.5 * alone.history[-1]["loss"]
    assert taught.validation_error < alone.validation_error + 0.02
    assert np.isfinite(taught.validation_error)


def test_a_teacher_is_a_part_before_its_pupil_and_decides_its_key() -> None:
    parts = {}
    for given in ('score_model.teacher="fast"', 'score_model.teacher="standard"', 'score_model.size="fast"'):
        recipe = load_recipe("digits", (given,))
        parts[given] = score_model_parts(recipe, recipe.load_data(), compute_here(recipe.compute))
    (teacher, pupil), (_, other), (fast,) = parts.values()
    assert (teacher.name, pupil.name, pupil.needs) == ("score-model-teacher", "score-model", ("score-model-teacher",))
    assert teacher.key == fast.key, "it is trained as it would be alone"
    assert len({pupil.key.text, other.key.text, fast.key.text}) == 3
