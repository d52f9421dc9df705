import json
import subprocess
import sys

import pytest
import torch

from s2ap_defend.errors import RecipeError
from s2ap_train.models import (
    VGG16,
    ResNet18,
    SmallCNN,
    WideResNet,
    batch_norm_statistics_frozen,
    build,
    create,
    evaluation_mode,
)
from s2ap_train.models.classifier import scaled_channels


def trained_looking(model: SmallCNN) -> SmallCNN:
    """Give batch normalisation statistics and an affine part that are far from their start."""
    generator = torch.Generator().manual_seed(5)
    for block in model.each_block():
        for tensor in (block.norm.weight, block.norm.bias, block.norm.running_mean, block.norm.running_var):
            tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def test_logits_have_one_row_per_image_and_one_column_per_class():
    model = SmallCNN(in_channels=3, classes=7, widths=(4, 5, 6), image_size=12, pool_after=(1,))
    assert model.eval()(torch.rand(2, 3, 12, 12)).shape == (2, 7)


def test_the_seed_decides_the_weights_and_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    first, same, other = SmallCNN(seed=1), SmallCNN(seed=1), SmallCNN(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_architecture_rebuilds_the_same_network():
    model = trained_looking(SmallCNN(widths=(3, 9, 4), pool_after=(0, 2), seed=3))
    rebuilt = build(model.architecture())
    rebuilt.load_state_dict(model.state_dict(), strict=True)
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(rebuilt.eval()(images), model(images))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (
            {"name": "big_cnn"},
            "unknown architecture 'big_cnn'; choose one of onnx, resnet18, small_cnn, user, vgg16_bn, wide",
        ),
        ({}, "unknown architecture None"),
        ({"name": "small_cnn", "depth": 3}, "'small_cnn' cannot be built from .*depth"),
        ({"name": "small_cnn", "widths": [4, 0]}, "every size must be at least 1"),
        ({"name": "resnet18", "classes": 0}, "classes 0, image_size 32; every size must be at least 1"),
        ({"name": "vgg16_bn", "width": 0}, "width is 0; the factor of the channels must be above 0"),
        ({"name": "resnet18", "image_size": [32, 0]}, "image_size \\[32, 0\\]; every size must be at least 1"),
        (
            {"name": "resnet18", "image_size": [32]},
            r"image_size is \[32\]; give one whole number .* or \[height, width",
        ),
        ({"name": "resnet18", "image_size": 32.5}, "cannot be built"),
        ({"name": "user"}, "'user' cannot be built from .*factory"),
        ({"name": "small_cnn", "widths": [4, 4], "pool_after": [2]}, "must name blocks from 0 to 1"),
        (
            {"name": "small_cnn", "widths": [4] * 4, "pool_after": [0, 1, 2, 3]},
            "leave nothing of an image of 8x8 pixels",
        ),
    ],
)
def test_an_architecture_that_cannot_be_built_is_refused(architecture, message):
    with pytest.raises(RecipeError, match=message):
        build(architecture)


def test_frozen_statistics_do_not_move_although_the_batch_normalises():
    model = SmallCNN(widths=(4, 4)).train()
    images = torch.rand(8, 1, 8, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with batch_norm_statistics_frozen(model):
        frozen = model(images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(frozen, model(images)), "the batch's own statistics normalise in both"
    assert not torch.equal(model.state_dict()["blocks.0.norm.running_mean"], before["blocks.0.norm.running_mean"])


def test_evaluation_mode_is_undone_also_after_an_error():
    model = SmallCNN(widths=(4,), pool_after=())
    model.blocks.eval()
    with evaluation_mode(model):
        assert not model.training
        assert not model.each_block()[0].training
    with pytest.raises(RuntimeError), evaluation_mode(model):
        model(torch.zeros(1, 5, 8, 8))
    assert model.training
    assert not model.blocks.training, "what was in evaluation mode stays there"


SCALED = {"resnet18": ResNet18, "vgg16_bn": VGG16, "wide_resnet_28_4": WideResNet}


@pytest.mark.parametrize(
    ("blocks", "pools"), [(1, (0,)), (2, (0, 1)), (3, (0, 1)), (4, (1, 2)), (5, (1, 3)), (6, (2, 4)), (9, (3, 6))]
)
def test_by_default_two_pools_stand_in_the_middle(blocks, pools):
    assert SmallCNN(widths=(2,) * blocks).pool_after == pools


@pytest.mark.parametrize(
    ("size", "pools"),
    [(64, (2, 4)), ((32, 128), (2, 4)), (96, (1, 2, 4)), ((48, 192), (1, 2, 4)), (256, (0, 1, 2, 4)), (999, range(6))],
)
def test_larger_images_are_pooled_more_often(size, pools):
    assert SmallCNN(image_size=size, widths=(2,) * 6).pool_after == tuple(pools)


@pytest.mark.parametrize("name", ["small_cnn", *SCALED])
@pytest.mark.parametrize(("size", "shape"), [(24, (3, 24, 24)), ([20, 12], (3, 20, 12)), ((20, 20), (3, 20, 20))])
def test_a_record_holds_one_number_for_square_images_and_two_for_others(name, size, shape):
    model = build({"name": name, "in_channels": 3, "image_size": size, "width": 0.125})
    assert model.image_shape == shape
    height, width = shape[1:]
    assert model.architecture()["image_size"] == (height if height == width else [height, width])


@pytest.mark.parametrize(
    "shape", [(2, 8, 8), (1, 28, 28), (2, 33, 33), (3, 20, 12), (4, 5, 31), (1, 48, 192), (3, 128, 96)]
)
@pytest.mark.parametrize("name", ["small_cnn", *SCALED])
def test_networks_take_any_image_and_are_rebuilt_from_their_architecture(name, shape):
    model = create({"name": name, "width": 0.125}, shape, 6, seed=3)
    assert isinstance(model, SCALED.get(name, SmallCNN))
    assert model.image_shape == shape
    images = torch.rand(3, *shape)
    logits = model.eval()(images)
    assert logits.shape == (3, 6)
    rebuilt = build(json.loads(json.dumps(model.architecture())), seed=3)
    assert torch.equal(rebuilt.eval()(images), logits), "architecture and seed decide everything"
    other = build(model.architecture(), seed=4)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other.eval()(images), logits)


@pytest.mark.parametrize("name", SCALED)
def test_published_networks_begin_with_he_weights_without_touching_the_global_random_state(name):
    before = torch.get_rng_state()
    model = SCALED[name](width=0.25)
    assert torch.equal(torch.get_rng_state(), before)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            weight = module.weight.detach()
            error = 4 / (2 * weight.numel()) ** 0.5  # standard errors of a standard deviation
            assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=error)
            assert module.bias is None or not module.bias.any()
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.dim() == 4)


def test_the_published_networks_have_their_published_channels_and_strides():
    resnet, vgg, wide = ResNet18(), VGG16(), WideResNet()
    assert [stage[0].conv1.out_channels for stage in resnet.stages] == [64, 128, 256, 512]
    assert resnet.stages(torch.zeros(1, 64, 32, 32)).shape == (1, 512, 4, 4), "no max-pool, three strides of two"
    convolutions = [m.out_channels for m in vgg.features if isinstance(m, torch.nn.Conv2d)]
    assert convolutions == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert vgg.features(torch.zeros(1, 3, 32, 32)).shape == (1, 512, 1, 1)
    assert wide.stages(wide.stem(torch.zeros(1, 3, 32, 32))).shape == (1, 256, 8, 8)
    deep = [m for m in wide.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(deep) == 25, "28 with the three 1x1 shortcuts"


def test_pixels_are_normalised_inside():
    for model in (ResNet18(width=0.0625), VGG16(width=0.0625), WideResNet(width=0.125), SmallCNN(3, image_size=32)):
        seen = []
        first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
        first.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(inputs[0]))
        model.eval()(torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1, 1).expand(3, 3, 32, 32))
        assert seen[0][:, 0, 0, 0].tolist() == [-1, 0, 1]


@pytest.mark.parametrize(
    ("channels", "width", "expected"),
    [
        (64, 1, 64),
        (64, 0.25, 16),
        (64, 0.3, 16),
        (64, 0.2, 16),
        (64, 0.125, 8),
        (16, 0.25, 4),
        (16, 0.01, 1),
        (8, 3, 24),
    ],
)
def test_scaled_channels_are_multiples_of_eight_from_eight_on(channels, width, expected):
    assert scaled_channels(channels, width) == expected


def test_the_small_network_has_a_width_too_and_describes_its_channels():
    model = create({"name": "small_cnn", "width": 0.5}, (1, 8, 8), 10)
    assert model.widths == (8, 8, 8, 16, 16, 32)
    assert build(model.architecture()).widths == model.widths


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        ("small_cnn", (3, 3, 28), "nothing of an image of 3x28 pixels, they need 4 a side; enlarge"),
        ({"name": "resnet18", "classes": 3}, (3, 32, 32), "the table of the network sets classes; leave that to the"),
        ("resnet99", (3, 32, 32), "unknown architecture 'resnet99'"),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_not_created(network, shape, message):
    with pytest.raises(RecipeError, match=message):
        create(network, shape, 10)


FRESH = """
import sys, s2ap_train.hardening.train, s2ap_train.redteam.campaign
print(sorted({'torch._dynamo', 'torchvision', 'triton'} & {*sys.modules}), flush=True)

import torch
from s2ap_train.models import create

torch.set_num_threads(2)
for name in ("resnet18", "wide_resnet_28_4"):
    model = create({"name": name, "width": 0.125}, (3, 32, 32), 10).train()
    for batch in (125, 63):
        images = torch.rand(batch, 3, 32, 32).to(memory_format=torch.channels_last)
        torch.autograd.grad(model(images).sum(), list(model.parameters()))
"""


@pytest.fixture(scope="module")
def fresh():
    """A process that imports what trains and attacks, then takes thin networks through two threads."""
    return subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=False)


def test_thin_networks_train_with_two_threads_at_any_batch_size(fresh):
    """A strided 1x1 convolution of fewer than 16 channels killed the process with a segmentation fault."""
    assert fresh.returncode == 0, fresh.stderr


def test_a_process_that_trains_or_attacks_starts_without_a_compiler(fresh):
    """Torch's compiler, which torchvision imports, and Triton take longer to import than all the rest."""
    assert fresh.stdout == "[]\n"
