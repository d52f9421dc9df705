import json

import pytest
import torch
from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_train.measures.quantisation import int8_twin
from s2ap_train.measures.transferability import transferability
from s2ap_train.models import SmallCNN


def half_reader(first: bool):
    """A linear classifier of two classes that reads one half of the pixels: class 1 where they are bright."""

    def model(x):
        pixels = x.flatten(1)
        half = pixels[:, : pixels.shape[1] // 2] if first else pixels[:, pixels.shape[1] // 2 :]
        score = half.mean(1) - 0.5
        return torch.stack([-score, score], dim=1) * 20

    return model


def half_images(count=200, margin=0.05):
    """Both halves are on the same side of 0.5, `margin` away on average: both readers are right."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (count,), generator=generator)
    noise = 0.02 * (2 * torch.rand(count, 1, 8, 8, generator=generator) - 1)
    return 0.5 + margin * (2 * labels[:, None, None, None] - 1) + noise, labels


def test_identical_models_transfer_as_well_as_they_are_attacked():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(60, 1, 8, 8, generator=generator), torch.randint(0, 10, (60,), generator=generator)
    model, twin = SmallCNN(widths=(8, 16)).eval(), SmallCNN(widths=(8, 16)).eval()
    with torch.no_grad():
        labels[:40] = model(images[:40]).argmax(1)  # so that something is right
    found = transferability({"a": model, "b": twin}, images, labels, eps=0.15)
    assert found.samples[0, 0] >= 40
    assert 0 < found.successes[0, 0] < found.samples[0, 0]
    assert len(set(found.successes.flatten().tolist())) == 1
    assert len(set(found.samples.flatten().tolist())) == 1


def test_orthogonal_linear_models_do_not_transfer():
    """The attack on one half leaves the other half with the random start, whose mean is about 0."""
    images, labels = half_images()
    found = transferability({"first": half_reader(True), "second": half_reader(False)}, images, labels, eps=0.08)
    assert found.samples.tolist() == [[200, 200], [200, 200]]
    assert found.rate("first", "first") == found.rate("second", "second") == 1.0
    # mean of 32 uniform pixels in +-0.08 has deviation 0.08 / sqrt(3 * 32) = 0.0082: the margin is six of them away
    assert found.rate("first", "second") == found.rate("second", "first") == 0.0


def test_transfer_has_a_direction():
    """Reading all pixels: an attack on one half moves the mean by half of eps, 0.04, less than the margin of 0.05."""
    images, labels = half_images()

    def whole_reader(x):
        score = x.flatten(1).mean(1) - 0.5
        return torch.stack([-score, score], dim=1) * 20

    found = transferability({"whole": whole_reader, "half": half_reader(True)}, images, labels, eps=0.08)
    assert found.rate("whole", "half") == 1.0
    assert found.rate("half", "whole") < 0.05
    assert found.to_json()["rate"][0][1] == 1.0  # rows are sources


def test_only_images_that_both_classify_correctly_count():
    """The blind model says class 0 always: images of class 1 are its own mistakes, no transfer."""
    images, labels = half_images()

    def blind(x):
        return torch.tensor([1.0, 0.0]) + 0 * x.flatten(1)[:, :2]

    found = transferability({"reader": half_reader(True), "blind": blind}, images, labels, eps=0.08)
    zeros = int((labels == 0).sum())
    assert found.samples.tolist() == [[200, zeros], [zeros, zeros]]
    assert found.rate("reader", "blind") == 0.0
    assert found.rate("blind", "blind") == 0.0


def test_models_without_a_common_correct_image_have_no_rate():
    images, labels = half_images(20)
    reader = half_reader(True)
    found = transferability({"right": reader, "wrong": lambda x: -reader(x)}, images, labels, eps=0.08)
    assert found.rate("right", "wrong") is None
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["rate"][0][1] is None
    assert document["samples"][0][1] == 0
    assert document["rate"][0][0] == 1.0
    assert document["attack"] == {"name": "pgd", "eps": 0.08, "steps": 20, "step_size": 0.01, "seed": 0}


def test_a_network_and_its_int8_twin_are_measured_both_ways_and_the_network_stays_in_its_mode():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(40, 1, 8, 8, generator=generator)
    model = SmallCNN(widths=(8, 16))
    twin = int8_twin(model, images)
    model.eval()
    with torch.no_grad():
        labels = model(images).argmax(1)
    model.train()
    statistics = {name: t.clone() for name, t in model.state_dict().items()}
    found = transferability({"dense": model, "int8": twin}, images, labels, eps=0.15)
    assert model.training
    assert all(torch.equal(t, statistics[name]) for name, t in model.state_dict().items())
    assert found.samples[0, 0] == 40
    rates = [found.rate(i, j) for i in found.names for j in found.names]
    assert 0 < min(rates) <= max(rates) < 1
    assert max(rates) - min(rates) < 0.25  # gradients pass the rounding: the twin is attacked as well as the network


def test_the_same_seed_gives_the_same_matrix():
    images, labels = half_images(50)
    models: dict[str, nn.Module] = {
        "a": SmallCNN(classes=2, widths=(4,)),
        "b": SmallCNN(classes=2, widths=(4,), seed=1),
    }
    first, second = (transferability(models, images, labels, eps=0.1, seed=3) for _ in range(2))
    assert first.to_json() == second.to_json()


def test_nothing_to_measure_is_refused():
    images, labels = half_images(4)
    with pytest.raises(RecipeError, match="found 0 models"):
        transferability({}, images, labels, eps=0.1)
    with pytest.raises(RecipeError, match=r"eps 0\.0"):
        transferability({"a": half_reader(True)}, images, labels, eps=0.0)
