"""Purifiers and classifiers of images of any height, width and number of channels, as ONNX Runtime runs them."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from tests.export.stage_runs import assert_same_bits_in_every_batch, bank, images
from torch import nn

from s2ap_export.tracing.trace import trace_classifier, trace_images, trace_purifier
from s2ap_train.models import create, fold_batch_norm
from s2ap_train.onnx_graphs import torch_stage
from s2ap_train.purifier import Purification, UNet, purify
from s2ap_train.purifier.blocks import Blocks

SHORT = Purification(steps=2, bank_size=2, sigma=0.2, rho=0.2, radius=0.1)
NETWORKS: dict[
    str, tuple[tuple[int, int, int], tuple[int, ...], int, Blocks]
] = {  # shape, multipliers, fold, blocks: sides with and without padding, folded and not
    "rectangular": ((3, 20, 12), (1, 2, 2), 1, "full"),
    "folded and odd": ((3, 13, 19), (1, 2), 2, "full"),
    "folded by four": ((4, 17, 12), (1, 1), 4, "full"),
    "separable": ((1, 10, 8), (1, 2), 2, "separable"),
}


def randomised(net: nn.Module) -> nn.Module:
    """Random weights everywhere, also where training starts at zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, "full") for name in NETWORKS), ("folded and odd", "j_free"), ("separable", "j_free")]
)
def test_images_of_any_size_are_purified_as_torch_does_and_to_the_same_bits_in_every_batch(
    name: str, mode: Literal["full", "j_free"]
) -> None:
    shape, multipliers, fold, blocks = NETWORKS[name]
    net = randomised(UNet(shape[0], 8, multipliers, fold, blocks=blocks))
    config = replace(SHORT, mode=mode)
    stage = trace_purifier(net, bank(config, shape), config, shape)
    x = images(9, shape)
    purified, error = assert_same_bits_in_every_batch(stage, x)
    attacked = torch.from_numpy(x).requires_grad_()
    expected, expected_error = purify(net, attacked, bank(config, shape), config)
    assert np.abs(purified - x).max() > 0.05
    np.testing.assert_allclose(purified, expected.detach().numpy(), atol=1e-5, rtol=0)
    np.testing.assert_allclose(error, expected_error.detach().numpy(), rtol=1e-4)
    (wanted,) = torch.autograd.grad(expected.square().sum(), attacked)
    (found,) = torch.autograd.grad(torch_stage(stage)(attacked)[0].square().sum(), attacked)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3 * float(wanted.abs().max()))


def test_zeros_beside_images_are_padding() -> None:
    def padded(x: torch.Tensor) -> torch.Tensor:
        above, left = x.new_zeros((x.shape[0], 1, 2, 3)), x.new_zeros((x.shape[0], 1, 6, 1))
        rows = torch.cat([above, x, above.sum(2, keepdim=True)], dim=2)
        return torch.cat([left, rows, left], dim=3)[:, :, 1:4, 1:4]

    x = images(4, (1, 3, 3))
    (found,) = assert_same_bits_in_every_batch(trace_images(padded, (1, 3, 3)), x)
    np.testing.assert_array_equal(found, np.pad(x, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :3])


@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "vgg16_bn", "wide_resnet_28_4"])
def test_rectangular_images_are_classified_as_torch_does(name: str) -> None:
    shape = (4, 13, 24)
    model = fold_batch_norm(create({"name": name, "width": 0.125}, shape, 5))
    x = images(9, shape)
    (found,) = assert_same_bits_in_every_batch(trace_classifier(model, shape, "classifier"), x)
    expected = torch.log_softmax(model(torch.from_numpy(x)), dim=1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
