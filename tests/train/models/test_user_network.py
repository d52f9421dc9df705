import importlib
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

FACTORIES = """
import torch
from torch import nn

def make(in_channels, classes):
    return nn.Sequential(nn.Conv2d(in_channels, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(6, classes))

def everything(**sizes):
    return nn.Sequential(nn.Flatten(), nn.Linear(sizes["in_channels"] * sizes["image_size"] ** 2, sizes["classes"]))

def nothing():
    return None

def fails(classes):
    raise ZeroDivisionError("no classes left")

def demands(depth):
    return nn.Identity()

def images():
    return nn.Identity()

class Sums(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :4]

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
    yield "my_networks"
    for name in ("my_networks", "my_broken", "my_failing"):
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
        ("nowhere.networks:make", "there is no module nowhere; run from the folder that holds it, or install it"),
        ("my_networks:missing", "my_networks holds nothing called missing, expected a function"),
        ("my_networks:constant", "my_networks holds a int called constant"),
        ("my_broken:make", "importing my_broken failed: No module named 'there_is_no_such_package'; install what"),
        ("my_failing:make", "importing my_failing failed with LookupError: half written; correct the module"),
        ("my_networks:nothing", "returned a NoneType, expected a torch.nn.Module"),
        ("my_networks:fails", "factory my_networks:fails failed with ZeroDivisionError: no classes left"),
        ("my_networks:demands", "failed with TypeError: .*'depth'; it is called with those of in_channels, classes"),
        (
            "my_networks:images",
            r"maps images of shape \(2, 2, 9, 9\) to \(2, 2, 9, 9\), expected logits of shape \(2, 4\)",
        ),
        (
            "my_networks:no_parameters",
            "the network of factory my_networks:no_parameters, a Sums, has no parameters, expected weights to train",
        ),
        ("my_networks:cannot_run", r"failed on images of shape \(2, 2, 9, 9\) with RuntimeError"),
    ],
)
def test_a_factory_that_makes_no_classifier_is_refused(factories, factory, message):
    with pytest.raises(RecipeError, match=message):
        build({"name": "user", "factory": factory, "in_channels": 2, "classes": 4, "image_size": 9})
