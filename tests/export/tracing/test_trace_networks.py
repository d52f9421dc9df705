"""Every network that can be trained can be exported, whole or without some of its channels."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from s2ap_export.tracing.trace import trace_classifier
from s2ap_train.models import VGG16, ResNet18, SmallCNN, WideResNet, fold_batch_norm
from s2ap_train.models.channel_groups import channel_groups, remove_channels

NETWORKS = {
    "small_cnn": lambda: SmallCNN(3, 7, (8, 12), 16, pool_after=(0, 1)),
    "resnet18": lambda: ResNet18(3, 7, 16, width=0.125),
    "vgg16_bn": lambda: VGG16(3, 7, 16, width=0.125),
    "wide_resnet_28_4": lambda: WideResNet(3, 7, 16, width=0.25),
}


def trained_looking(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def answer(module: nn.Module, x: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    model = trace_classifier(module, shape, "classifier")
    runner = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (together,) = runner.run(None, {"image": x})
    alone = np.concatenate([runner.run(None, {"image": x[i : i + 1]})[0] for i in range(len(x))])
    np.testing.assert_array_equal(alone, together)
    return together


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_runtime_answers_as_torch_does(name: str, cut: bool) -> None:
    model = trained_looking(NETWORKS[name]())
    if cut:
        groups = channel_groups(model, model.image_shape, verify=False)
        kept = {group.name: torch.arange(group.size) % 3 > 0 for group in groups}
        model = remove_channels(model, groups, kept)
    x = np.random.default_rng(0).random((5, *model.image_shape), dtype=np.float32)
    expected = torch.log_softmax(model(torch.from_numpy(x)), dim=1).detach().numpy()
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(answer(fold_batch_norm(model), x, model.image_shape), expected, rtol=0, atol=tolerance)


class InPlace(nn.Module):
    """Writes over what another name still stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 3)
        self.active = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        features = self.convolution(x)
        rows = features.flatten(1)
        self.active(features)
        features += 1
        return rows[:, :4]


def test_operations_in_place_are_exported_as_torch_does_them() -> None:
    torch.manual_seed(0)
    module, x = InPlace().eval(), np.random.default_rng(0).random((5, 3, 8, 8), dtype=np.float32)
    expected = torch.log_softmax(module(torch.from_numpy(x)), dim=1).detach().numpy()
    np.testing.assert_allclose(answer(module, x, (3, 8, 8)), expected, rtol=0, atol=1e-6)
