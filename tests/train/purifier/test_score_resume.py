"""Training of the score model in several goes, in several processes, and in other precisions."""

import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.train.toy_data import same

from s2ap_defend.errors import RecipeError
from s2ap_train.compute import LOCAL, Compute, ComputeSettings, launch
from s2ap_train.data import load_digits
from s2ap_train.purifier import ScoreTraining, denoising_error, train_score_model
from s2ap_train.purifier.score_state import ScoreState
from s2ap_train.purifier.unet import UNet
from s2ap_train.storage.snapshots import Snapshots
from s2ap_train.training import Run

SHORT = ScoreTraining(epochs=3, width=8, batch_size=25, flip=True)

# What processes run must be importable by them, and test modules are not.
JOBS = """
import torch

from s2ap_train.purifier import train_score_model
from s2ap_train.training import Run


def train(compute, images, config):
    trained = train_score_model(images, config, run=Run(0, compute))
    weights = torch.cat([value.flatten() for value in trained.net.state_dict().values()])
    return trained, float((compute.mean([weights])[0] - weights).abs().max())
"""


class KilledError(Exception):
    pass


def toy_images(count=60):
    return np.random.default_rng(0).random((count, 1, 8, 8), dtype=np.float32)


def killed_after(epochs):
    def hook(epoch, _):
        if epoch + 1 == epochs:
            raise KilledError

    return hook


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_killed_training_ends_with_the_weights_and_figures_of_an_unbroken_one(tmp_path, epochs):
    unbroken = train_score_model(toy_images(), SHORT, run=Run(0))
    snapshots = Snapshots(tmp_path, "the same")
    with pytest.raises(KilledError):
        train_score_model(toy_images(), SHORT, run=Run(0, snapshots=snapshots, on_epoch=killed_after(epochs)))
    seen = []
    resumed = train_score_model(
        toy_images(),
        SHORT,
        run=Run(0, snapshots=Snapshots(tmp_path, "the same"), on_epoch=lambda epoch, _: seen.append(epoch)),
    )
    assert seen == [0, 1, 2], "the epochs before the kill are told of again"
    assert resumed.history == unbroken.history
    assert resumed.denoising == unbroken.denoising
    assert same(unbroken.net.state_dict(), resumed.net.state_dict())


def test_a_snapshot_holds_average_adam_learning_rate_and_generator_to_the_last_bit(tmp_path):
    def state():
        net = UNet(1, 8, seed=3).to(memory_format=torch.channels_last)
        return ScoreState(net, epochs=5, steps=2, lr=1e-3, average_decay=0.9, run=Run(0))

    def go_on(state, steps):
        for _ in range(steps):
            x = torch.rand(4, 1, 8, 8, generator=state.generator)
            state.step((state.model(x, 0.2) - x).square().mean())

    first, second = state(), state()
    go_on(first, 3)
    first.history.append({"loss": 0.1 + 0.2})
    Run(0, snapshots=Snapshots(tmp_path, "state")).save(*first.snapshot())
    assert Run(0, snapshots=Snapshots(tmp_path, "state")).resume(second)
    assert second.history == [{"loss": 0.1 + 0.2}]
    assert second.epoch == 1
    for at_once in (False, True):  # as it was saved, and two steps later
        if at_once:
            go_on(first, 2)
            go_on(second, 2)
        assert same(first.model.state_dict(), second.model.state_dict())
        assert same(first.average.model.state_dict(), second.average.model.state_dict())
        assert first.average.updates == second.average.updates == (5 if at_once else 3)
        assert first.optimiser.param_groups[0]["lr"] == second.optimiser.param_groups[0]["lr"]
        assert torch.equal(first.generator.get_state(), second.generator.get_state())
        for one, two in zip(first.parameters.values(), second.parameters.values(), strict=True):
            assert same(first.optimiser.state[one], second.optimiser.state[two])
    half_way = 1e-3 * 0.5 * (1 + np.cos(np.pi * 5 / 10))
    assert second.optimiser.param_groups[0]["lr"] == pytest.approx(half_way, rel=1e-12)


def test_a_snapshot_of_another_network_is_refused(tmp_path):
    snapshots = Snapshots(tmp_path, "the same")
    with pytest.raises(KilledError):
        train_score_model(toy_images(), SHORT, run=Run(0, snapshots=snapshots, on_epoch=killed_after(1)))
    with pytest.raises(RecipeError, match="has shape"):
        train_score_model(toy_images(), replace(SHORT, width=16), run=Run(0, snapshots=Snapshots(tmp_path, "the same")))


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two CPU cores for two processes")
def test_two_processes_train_the_weights_of_one(tmp_path, monkeypatch):
    (tmp_path / "score_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path)
    import score_jobs

    config = replace(SHORT, epochs=1, batch_size=21)  # 54 images in batches of 18: none is shared evenly by four
    (two, spread), (one, _) = (
        launch(ComputeSettings("cpu", devices, channels_last=False), score_jobs.train, toy_images(61), config)
        for devices in (2, 1)
    )
    del sys.modules["score_jobs"]
    assert spread == 0.0, "both processes hold the same weights"
    start = UNet(1, 8, seed=0).state_dict()
    for name, weight in one.net.state_dict().items():
        moved = float((weight - start[name]).abs().max())
        # Sums are taken in another order; Adam divides by the gradient's size, which enlarges that where it is small.
        assert float((two.net.state_dict()[name] - weight).abs().max()) <= 1e-2 * moved
    assert two.history[0]["loss"] == pytest.approx(one.history[0]["loss"], rel=1e-5)


def test_a_batch_smaller_than_the_number_of_processes_is_refused():
    compute = Compute()
    compute.world_size = 2
    with pytest.raises(RecipeError, match=r"a batch of 1 images cannot be shared by 2 processes; raise batch_size"):
        train_score_model(toy_images(4), ScoreTraining(epochs=1, width=8, batch_size=1), run=Run(0, compute))


def test_bfloat16_passes_end_near_the_weights_of_float32():
    """bfloat16 has 8 significant bits: a loss of about 1 is off by a few times 2^-9 at the most."""
    exact = train_score_model(toy_images(), replace(SHORT, epochs=1), run=Run(0, LOCAL))
    rounded = train_score_model(toy_images(), replace(SHORT, epochs=1), run=Run(0, Compute(precision="bf16")))
    weights = rounded.net.state_dict()
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert not same(exact.net.state_dict(), weights)
    assert rounded.history[0]["loss"] == pytest.approx(exact.history[0]["loss"], abs=2**-6)


def test_with_flips_mirrored_images_are_as_familiar_as_the_others():
    ramp = np.linspace(0, 1, 8, dtype=np.float32)  # dark on the left
    images = 0.1 * toy_images(200) + 0.8 * ramp
    held_out = torch.from_numpy(0.1 * toy_images(250)[200:] + 0.8 * ramp)
    config = replace(SHORT, epochs=10)
    ratios = {}
    for flip in (True, False):
        net = train_score_model(images, replace(config, flip=flip), run=Run(0)).net
        (own,), (mirrored,) = (denoising_error(net, some, [0.3]) for some in (held_out, held_out.flip(3)))
        ratios[flip] = mirrored / own
    assert ratios[True] == pytest.approx(1, abs=0.2)
    assert ratios[False] > 2


def test_digits_train_the_same_average_however_often_they_are_validated():
    digits = load_digits(0)
    config = ScoreTraining(epochs=1, width=8)
    one = train_score_model(digits.train.images, config, run=Run(0), validation=digits.validation.images)
    two = train_score_model(digits.train.images, config, run=Run(0), validation=digits.validation.images[:5])
    assert same(one.net.state_dict(), two.net.state_dict())
