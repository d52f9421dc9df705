"""Weights under others' names: a network behind a normalisation, as RobustBench's checkpoints hold it."""

import argparse
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_train.models import UserNetwork
from s2ap_train.models.small_cnn import SmallCNN
from s2ap_train.models.weight_file import load_given
from s2ap_train.models.weight_names import matched

MEAN, STD = (0.25, 0.5, 0.75), (0.2, 0.25, 0.5)


class Normalise(nn.Module):
    def __init__(self, mean=MEAN, std=STD) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def body() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))


class Behind(nn.Module):
    """A network that normalises by itself, with the buffers that many of RobustBench have."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mu", torch.tensor(MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("sigma", torch.tensor(STD).reshape(1, 3, 1, 1))
        self.body = body()

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - self.mu) / self.sigma)


@pytest.fixture
def factory(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "bare", body, raising=False)
    monkeypatch.setitem(sys.modules, "others_networks", sys.modules[__name__])
    return lambda name="bare", **more: UserNetwork(f"others_networks:{name}", 3, 5, 4, **more)


@pytest.fixture
def images():
    return torch.rand(6, 3, 4, 4)


def whole() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(Normalise(), body()).eval()


def test_a_network_behind_a_normalisation_is_found_with_what_it_normalises_by(tmp_path, factory, images):
    trained = whole()
    state = {f"module.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "robust.pt")
    network = factory()
    notes = load_given(network, tmp_path / "robust.pt")
    assert [note.partition(" ")[0] for note in notes] == ["the", "the", "the", "pixels"]
    assert "'1.'" in notes[2]
    assert notes[3].endswith("mean 0.25, 0.5, 0.75, std 0.2, 0.25, 0.5")
    assert torch.allclose(network.eval()(images), trained(images), atol=1e-6)
    rebuilt = factory(mean=network.arguments()["mean"], std=network.arguments()["std"])
    rebuilt.network.load_state_dict(network.network.state_dict())
    assert torch.equal(rebuilt.eval()(images), network(images))


def test_another_normalisation_than_the_named_one_is_refused_and_the_same_is_not(tmp_path, factory):
    torch.save(whole().state_dict(), tmp_path / "robust.pt")
    load_given(factory(mean=MEAN, std=STD), tmp_path / "robust.pt")
    with pytest.raises(RecipeError, match=r"mean 0.25, 0.5, 0.75 and std .* was named; leave mean and std out"):
        load_given(factory(mean=(0.5,), std=(0.5,)), tmp_path / "robust.pt")


def test_a_normalisation_that_only_the_network_holds_keeps_its_numbers(tmp_path, factory, monkeypatch):
    state = {f"body.{name}": value for name, value in body().state_dict().items()}
    torch.save(state, tmp_path / "robust.pt")
    network = factory("Behind")
    (note,) = load_given(network, tmp_path / "robust.pt")
    assert note == "the file has no mu, sigma: the network's own are used"
    assert network.network.mu.flatten().tolist() == list(MEAN)
    assert all(torch.equal(value, network.network.state_dict()[name]) for name, value in state.items())


def test_a_network_of_ours_has_no_place_for_a_normalisation(tmp_path):
    network = SmallCNN(3, 5, (4,), 8)
    state = {f"net.{name}": value for name, value in network.state_dict().items()}
    torch.save({**state, "mean": torch.tensor(MEAN), "std": torch.tensor(STD)}, tmp_path / "robust.pt")
    with pytest.raises(
        RecipeError, match=r"hold a normalisation, mean \[0.25, 0.5, 0.75\] .* which a SmallCNN has not"
    ):
        load_given(network, tmp_path / "robust.pt")


def test_names_of_another_network_stay_as_they_are():
    state = {"encoder.stem.weight": torch.ones(3), "encoder.head": torch.ones(2), "encoder.mean": torch.ones(3)}
    assert matched(state, body()).tensors == state
    assert matched(state, body()).notes == ()


def test_settings_and_numbers_beside_the_weights_are_read_past(tmp_path, factory):
    beside = {"args": argparse.Namespace(lr=0.1, eps=8 / 255), "best": np.float64(0.5), "epoch": np.int64(3)}
    torch.save({**beside, "model": body().state_dict()}, tmp_path / "robust.pt")
    assert load_given(factory(), tmp_path / "robust.pt") == ("the weights are under the key 'model'",)
