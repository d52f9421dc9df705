"""Networks of timm, small, where timm is installed: traced, rebuilt by the twin, and pruned by every structure."""

import sys
import warnings

import numpy as np
import pytest
import torch

from s2ap_export.hardening.beforehand import check_network
from s2ap_train.models import UserNetwork
from s2ap_train.models.cost import flops
from s2ap_train.pruning import Hydra, finetune, prune
from s2ap_train.pruning.prunable import check_prunable
from s2ap_train.training import Run, TrainingConfig

timm = pytest.importorskip("timm", reason="timm is not installed: pip install timm")

IMAGE, CLASSES = (3, 32, 32), 5
VIT = {"img_size": 32, "patch_size": 8, "depth": 2}
NETWORKS = {
    "resnet18": {},
    "mobilenetv3_small_100": {},
    "efficientnet_b0": {},
    "convnext_atto": {},
    "vit_tiny_patch16_224": VIT,
}
TRAINING = TrainingConfig(epochs=1, lr=0.01, batch_size=8, attack_steps=1, validation_steps=1)


@pytest.fixture(params=NETWORKS)
def network(request, monkeypatch) -> UserNetwork:
    def make(classes: int) -> torch.nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return timm.create_model(request.param, num_classes=classes, **NETWORKS[request.param])

    module = sys.modules[__name__]
    monkeypatch.setattr(module, "make", make, raising=False)
    monkeypatch.setitem(sys.modules, "timm_networks", module)
    return UserNetwork("timm_networks:make", IMAGE[0], CLASSES, IMAGE[1])


def test_a_network_of_timm_is_traced_rebuilt_and_pruned_by_every_structure(network):
    images = np.random.default_rng(0).random((8, *IMAGE), dtype=np.float32)
    check_network(network, images)
    x, y = torch.from_numpy(images), torch.arange(8) % CLASSES
    for structure in ("unstructured", "2:4", "channel"):
        method = Hydra(sparsity=0.5, structure=structure, training=TRAINING)
        check_prunable(network, IMAGE, method)
        found = prune(network, x, y, (x, y), method, run=Run(0))
        shipped = finetune(found, x, y, (x, y), None, structure=structure, run=Run(0)).model
        with torch.no_grad():
            torch.testing.assert_close(shipped(x), found.model(x), atol=1e-5, rtol=1e-5)
    assert flops(shipped, IMAGE) < 0.6 * flops(network, IMAGE)
    check_network(shipped, images)
