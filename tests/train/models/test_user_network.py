import importlib
import json
import sys

import pytest
import torch

from s2ap_defend.errors import RecipeError
from s2ap_train.models import (
    Classifier,
    UserNetwork,
    build,
    create,
)
from s2ap_train.models.channel_groups import channel_groups, remove_channels
from s2ap_train.models.weight_file import load_given

FACTORIES = """
import torch
from torch import nn

def make(in_channels, classes):
    return nn.Sequential(nn.Conv2d(in_channels, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(6, classes))

def everything(**sizes):
    return nn.Sequential(nn.Flatten(), nn.Linear(sizes["in_channels"] * sizes["image_size"] ** 2, sizes["classes"]))

def by_shape(image_shape, classes, width=1):
    assert width == 1, "the width of an image is no factor of channels"
    return nn.Sequential(nn.Flatten(), nn.Linear(image_shape[0] * image_shape[1] * image_shape[2], classes))

def by_sides(height, width, in_channels, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * height * width, classes))

def by_size(image_size, in_channels, classes):
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * height * width, classes))

def nothing():
    return None

def fails(classes):
    raise ZeroDivisionError("no classes left")

def leaves():
    raise SystemExit(3)

def demands(depth):
    return nn.Identity()

def images():
    return nn.Identity()

class Sums(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :4]

class Labels(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = make(2, 4)
    def forward(self, images):
        return nn.functional.one_hot(self.inner(images).argmax(1), 4).float()

def labels():
    return Labels()

class Double(Labels):
    def forward(self, images):
        return self.inner(images).double()

def double():
    return Double()

def frozen(in_channels, classes):
    network = make(in_channels, classes)
    network[0].requires_grad_(False)
    return network

def scripted(in_channels, classes):
    return torch.jit.script(make(in_channels, classes))

def no_parameters():
    return Sums()

def cannot_run():
    return nn.Linear(999, 3)

constant = 3
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_networks.py").write_text(FACTORIES)
    (tmp_path / "my_broken.py").write_text("import there_is_no_such_package\n")
    (tmp_path / "my_failing.py").write_text("raise LookupError('half written')\n")
    (tmp_path / "my_script.py").write_text("import sys\nsys.exit('give --lr')\n")
    yield "my_networks"
    for name in ("my_networks", "my_broken", "my_failing", "my_script"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


def test_a_users_network_is_made_by_its_factory_and_rebuilt_from_its_architecture(factories):
    before = torch.get_rng_state()
    model = create(f"{factories}:make", (2, 9, 9), 4, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(model, UserNetwork)
    assert isinstance(model, Classifier)
    assert model.architecture() == {
        "name": "user",
        "factory": "my_networks:make",
        "in_channels": 2,
        "classes": 4,
        "image_size": 9,
    }
    images = torch.rand(3, 2, 9, 9)
    assert torch.equal(model.eval()(images), model.network(images)), "taken as it is"
    assert torch.equal(build(model.architecture(), seed=1).eval()(images), model(images))
    assert not torch.equal(build(model.architecture(), seed=2).eval()(images), model(images))
    assert create({"name": "user", "factory": f"{factories}:everything"}, (1, 4, 4), 3)(
        images[:, :1, :4, :4]
    ).shape == (
        3,
        3,
    )


@pytest.mark.parametrize("factory", ["by_shape", "by_sides", "by_size", "make"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 20, 12), (4, 9, 16)])
def test_a_factory_is_told_the_sides_of_images_as_it_asks_for_them(factories, factory, shape):
    model = create(f"{factories}:{factory}", shape, 4).eval()
    images = torch.rand(2, *shape)
    assert model(images).shape == (2, 4)
    rebuilt = build(json.loads(json.dumps(model.architecture())))
    assert torch.equal(rebuilt.eval()(images), model(images))


def test_a_users_network_without_channels_is_rebuilt_too(factories):
    model = create(f"{factories}:make", (2, 9, 9), 4).eval()
    groups = channel_groups(model, model.image_shape)
    assert [group.name for group in groups] == ["network.0.weight"]
    smaller = remove_channels(model, groups, {"network.0.weight": torch.arange(6) < 2})
    rebuilt = build(smaller.architecture())
    rebuilt.load_state_dict(smaller.state_dict(), strict=True)
    images = torch.rand(3, 2, 9, 9)
    assert torch.equal(rebuilt.eval()(images), smaller(images))
    assert smaller.architecture()["channels"] == {"network.0.weight": 2}


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("my_networks", "the factory is 'my_networks', expected package.module:function"),
        ("my_networks:", "expected package.module:function"),
        ("./nets/my_networks.py:build", "names a file, expected the module: my_networks:build, from the folder"),
        ("nowhere.networks:make", "there is no module nowhere; run from the folder that holds it, or install it"),
        ("my_networks:missing", "my_networks holds nothing called missing, expected a function"),
        (
            "my_networks:constant",
            "factory my_networks:constant is a int, expected a function that returns a torch module",
        ),
        ("my_broken:make", "importing my_broken failed: No module named 'there_is_no_such_package'; install what"),
        ("my_failing:make", "importing my_failing failed with LookupError: half written; correct the module"),
        ("my_networks:nothing", "returned a NoneType, expected a torch.nn.Module"),
        ("my_networks:scripted", "returned a TorchScript module, .*or export it, torch.onnx.export.*--onnx$"),
        ("my_networks:fails", "factory my_networks:fails failed with ZeroDivisionError: no classes left"),
        ("my_script:make", "importing my_script ends the program; put what the script does"),
        ("my_networks:leaves", "factory my_networks:leaves failed with SystemExit: 3"),
        ("my_networks:demands", "failed with TypeError: .*'depth'; it is called with those of in_channels, classes"),
        (
            "my_networks:images",
            r"maps images of shape \(2, 2, 9, 9\) to \(2, 2, 9, 9\), expected logits of shape \(2, 4\)",
        ),
        (
            "my_networks:no_parameters",
            "the network of factory my_networks:no_parameters, a Sums, has no parameters, expected weights to train",
        ),
        ("my_networks:labels", "my_networks:labels passes no gradient: its forward method leaves torch or detaches"),
        ("my_networks:double", r"answers with torch.float64, expected torch.float32; end its forward .* .float\(\)"),
        ("my_networks:cannot_run", r"failed on images of shape \(2, 2, 9, 9\) with RuntimeError"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_factory_that_makes_no_classifier_is_refused(factories, factory, message):
    with pytest.raises(RecipeError, match=message):
        build({"name": "user", "factory": factory, "in_channels": 2, "classes": 4, "image_size": 9})


def test_frozen_parameters_are_trained_and_that_is_said(factories):
    model = create(f"{factories}:frozen", (3, 8, 8), 4)
    assert all(weight.requires_grad for weight in model.parameters())
    assert model.notes[0] == "2 frozen parameters are trained like the others wherever this network is trained"


def test_pixels_are_normalised_before_the_network_sees_them(factories):
    plain = create({"name": "user", "factory": f"{factories}:make"}, (3, 8, 8), 4, seed=1)
    table = {"name": "user", "factory": f"{factories}:make", "mean": [0.4, 0.5, 0.6], "std": [0.2]}
    normalised = create(table, (3, 8, 8), 4, seed=1)
    x = torch.rand(5, 3, 8, 8)
    fed = (x - torch.tensor([0.4, 0.5, 0.6]).reshape(1, 3, 1, 1)) / 0.2
    plain.eval(), normalised.eval()
    torch.testing.assert_close(normalised(x), plain(fed))
    assert normalised.state_dict().keys() == plain.state_dict().keys()  # its weights are the user's alone
    again = build(normalised.architecture())
    again.load_state_dict(normalised.state_dict())
    torch.testing.assert_close(again.eval()(x), normalised(x))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"mean": [0.1, 0.2]}, r"mean is \[0.1, 0.2\]; give one finite number for each of 3 channels"),
        ({"std": [0.0]}, r"std is \[0.0\]; pixels are divided by it"),
        ({"mean": [123.7, 116.3, 103.5], "std": [58.4]}, "pixels are in .0, 1.; divide mean and std by 255"),
        ({"std": [float("nan")]}, "give one finite number"),
    ],
)
def test_a_normalisation_that_is_none_is_refused(factories, keys, said):
    with pytest.raises(RecipeError, match=said):
        create({"name": "user", "factory": f"{factories}:make", **keys}, (3, 8, 8), 4)


def test_the_scale_of_logits_is_seen_with_the_weights_that_are_loaded(factories, tmp_path):
    network = create({"name": "user", "factory": f"{factories}:make"}, (3, 8, 8), 4, seed=1)
    state = network.network.state_dict()
    torch.save(state | {"5.weight": 1e4 * state["5.weight"], "5.bias": 1e4 * state["5.bias"]}, tmp_path / "large.pt")
    (note,) = load_given(network, tmp_path / "large.pt")
    assert "logits are large" in note
    x = torch.rand(8, 3, 8, 8)
    network.eval()
    assert network(x).std(dim=1).mean() < 10
    assert torch.equal(network(x).argmax(dim=1), network.network(x).argmax(dim=1))
    again = build(network.architecture())
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(x), network(x))
    as_they_are = create({"name": "user", "factory": f"{factories}:make", "logits": {}}, (3, 8, 8), 4, seed=1)
    assert load_given(as_they_are, tmp_path / "large.pt") == ()
    assert torch.equal(as_they_are.eval()(x), network.network(x))
