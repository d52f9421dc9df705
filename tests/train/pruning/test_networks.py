"""Networks of every kind, pruned by weight, in the 2:4 pattern and by channel; and what is refused before training."""

from dataclasses import fields, replace

import pytest
import torch
import torchvision
from tests.train.small_networks import CLASSES, IMAGE, NETWORKS, Bare, Shared, convolutions
from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_train.models.channel_groups import channel_report, gate_channels, remove_channels
from s2ap_train.models.cost import flops
from s2ap_train.pruning import Harp, Hydra, Magnitude, TwinRep, finetune, magnitude_pruned, prune
from s2ap_train.pruning.masks import sparsity
from s2ap_train.pruning.methods import METHODS
from s2ap_train.pruning.prunable import check_achieved, check_prunable
from s2ap_train.pruning.scores import prunable_weights
from s2ap_train.pruning.two_four import is_two_four
from s2ap_train.training import Run, TrainingConfig

TRAINING = TrainingConfig(epochs=1, lr=0.01, batch_size=8, attack_steps=1, validation_steps=1)


def made(name):
    torch.manual_seed(0)
    return NETWORKS[name]()


def data(count=8):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, *IMAGE, generator=generator), torch.arange(count) % CLASSES


@pytest.mark.parametrize("structure", ["unstructured", "2:4", "channel"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_every_kind_is_pruned_by_every_structure(name, structure):
    model, (images, labels) = made(name), data()
    method = Hydra(sparsity=0.5, structure=structure, training=TRAINING)
    check_prunable(model, IMAGE, method)
    found = prune(model, images, labels, (images, labels), method, run=Run(0))
    assert sparsity(found.masks) == pytest.approx(
        0.5, abs=len(found.masks) / sum(m.numel() for m in found.masks.values())
    )
    shipped = finetune(found, images, labels, (images, labels), None, structure=structure, run=Run(0)).model
    with torch.no_grad():
        gated, logits = found.model(images), shipped(images)
    assert logits.isfinite().all()
    assert (logits - gated).abs().max() <= 1e-5 * gated.abs().max().clamp_min(1)
    if structure == "channel":
        assert flops(shipped, IMAGE) < flops(model, IMAGE)
        return
    weights = prunable_weights(shipped)
    assert all(not weights[weight][~mask].any() for weight, mask in found.masks.items())
    assert structure == "unstructured" or all(is_two_four(mask) for mask in found.masks.values())


def keys_of(name):
    return {each.name for each in fields(METHODS[name].settings)}


STRUCTURED = [
    (name, structure)
    for name in sorted(METHODS.keys() - {"iterative-magnitude"})
    for structure in (("unstructured", "2:4", "channel") if "structure" in keys_of(name) else ("unstructured",))
    if (name, structure) != ("harp", "2:4")
]


@pytest.mark.parametrize(("name", "structure"), STRUCTURED)
def test_every_method_removes_what_was_asked_of_a_transformer(name, structure):
    """And fine-tunes what is left; iterative pruning wants a trained network and has the masks of magnitude."""
    training = replace(TRAINING, epochs=3 if name == "twin-rep" else 1)
    sparsity = 0.2 if name == "harp" and structure == "channel" else 0.5
    given = {"sparsity": sparsity, "structure": structure, "training": training}
    method = METHODS[name].settings(**{key: value for key, value in given.items() if key in keys_of(name)})
    model, (images, labels) = made("vision transformer"), data()
    check_prunable(model, IMAGE, method)
    found = prune(model, images, labels, (images, labels), method, run=Run(0))
    tuned = finetune(found, images, labels, (images, labels), TRAINING, structure=structure, run=Run(1))
    assert tuned.model(images).isfinite().all()
    if structure == "channel":
        assert flops(tuned.model, IMAGE) < flops(model, IMAGE)
    else:
        zeros = [int((prunable_weights(tuned.model)[each] == 0).sum()) for each in found.masks]
        assert sum(zeros) >= sum(int((~mask).sum()) for mask in found.masks.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["resnet50", "densenet121", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "vit_b_16", "swin_t"],
)
def test_published_networks_of_full_size_lose_the_channels_that_are_gated(name):
    torch.manual_seed(0)
    model, shape = getattr(torchvision.models, name)(num_classes=CLASSES).eval(), (3, 224, 224)
    groups = channel_report(model, shape, verify=False).groups
    kept = {group.name: torch.arange(group.size) % 2 == 0 for group in groups}
    x = torch.rand(1, *shape)
    smaller = remove_channels(model, groups, kept)
    with torch.no_grad():
        gated, removed = gate_channels(model, groups, kept)(x), smaller(x)
    assert (removed - gated).abs().max() <= 1e-4 * gated.abs().max().clamp_min(1)
    assert flops(smaller, shape) < 0.75 * flops(model, shape)


@pytest.mark.parametrize("method", [Hydra(), Magnitude(), TwinRep()])
def test_weights_that_no_layer_holds_are_refused_by_name(method):
    with pytest.raises(RecipeError, match=r"of this Bare are in no layer .*first \(768, 8\), last \(8, 5\).*nn.Linear"):
        check_prunable(Bare(), IMAGE, method)


def narrow() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 196, CLASSES))


@pytest.mark.parametrize(
    ("model", "method", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 6, 16), nn.Flatten(), nn.Linear(6, 5)), Hydra(sparsity=0.5, structure="2:4"),
         "no layer of this Sequential has a multiple of 4 inputs"),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), Hydra(structure="channel"), "it has no hidden layers"),
        (narrow(), Hydra(sparsity=0.1, structure="channel"), "sparsity 0.1 would remove nothing: the largest of 1"),
        (convolutions(nn.GroupNorm(1, 8), nn.Conv2d(8, 8, 1)), Harp(sparsity=0.9, structure="channel"),
         r"sparsity 0.9 of the parameters cannot be reached: at most 0\.\d+"),
        (Shared(), TwinRep(), "again.weight and once.weight are one weight, TwinRep gives each layer its own"),
    ],
)  # fmt: skip
def test_what_a_method_cannot_prune_is_known_before_training(model, method, message):
    with pytest.raises(RecipeError, match=message):
        check_prunable(model, IMAGE, method)


def test_what_stays_as_it_is_is_said():
    notes = check_prunable(made("vision transformer"), IMAGE, Hydra(structure="channel"))
    assert any(note.startswith("all channels stay in conv_proj.weight, ") for note in notes)
    assert not any("in_proj_weight" in note for note in notes), "its heads can go"
    (dense,) = check_prunable(made("no normalisation"), IMAGE, Hydra(sparsity=0.5, structure="2:4"))
    assert dense == "inputs are no multiple of 4, so these stay dense: 0.weight"
    assert check_prunable(made("no normalisation"), IMAGE, Hydra()) == ()
    (bare,) = check_prunable(nn.Sequential(Bare(), nn.Linear(CLASSES, CLASSES)), IMAGE, Hydra())
    assert bare == "100% of the numbers are parameters that no layer holds, they stay as they are: 0.first, 0.last"


def test_a_result_that_is_not_what_was_asked_for_is_an_error():
    model, method = made("no normalisation"), Magnitude(sparsity=0.5)
    found = magnitude_pruned(model, IMAGE, method)
    check_achieved(found, model, IMAGE, method)
    whole = {name: torch.ones_like(mask) for name, mask in found.masks.items()}
    with pytest.raises(RecipeError, match=r"pruning removed 0.00% of the weights, 50.00% was asked for"):
        check_achieved(replace(found, masks=whole), model, IMAGE, method)
    with pytest.raises(RecipeError, match=r"pruning removed 50.00% of the weights, 80.00% was asked for"):
        check_achieved(found, model, IMAGE, replace(method, sparsity=0.8))
    with pytest.raises(RecipeError, match=r"0.weight, 1.weight, 3.weight and 1 more are not 0 where they were pruned"):
        check_achieved(replace(found, model=model), model, IMAGE, method)
