import pytest
import torch
from tests.train.toy_data import bars

from s2ap_train.measures.autoattack import autoattack
from s2ap_train.measures.benchmark import measure_benchmark
from s2ap_train.models import SmallCNN
from s2ap_train.training import Run, TrainingConfig, train_classifier

QUICK = {"iterations": 10, "queries": 50}


class Linear(torch.nn.Module):
    """Two classes by the sum of 64 pixels: the distance of an image to the boundary is known."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, images):
        surplus = self.scale * (images.flatten(1).sum(1) - 32)
        return torch.stack([-surplus, surplus], dim=1)


def test_a_linear_network_is_broken_exactly_beyond_its_margin():
    """64 pixels of 0.5 + m move the sum by 64 m: an attack of eps reaches the boundary if eps > m."""
    margins = torch.tensor([0.05, 0.09, 0.11, 0.2])
    images = (0.5 + margins)[:, None, None, None].expand(4, 1, 8, 8).clone()
    found = autoattack(Linear(), images, torch.ones(4, dtype=torch.int64), eps=0.1, seed=0, **QUICK)
    assert found.clean_accuracy == 1.0
    assert found.robust_accuracy == 0.5
    assert found.attacks == ("apgd-ce", "fab-t", "square"), "two classes have no targeted DLR loss"


def test_it_finds_no_less_than_pgd_and_leaves_the_network_and_the_random_state_alone():
    model = SmallCNN(classes=4, widths=(6, 8), pool_after=(0, 1))
    config = TrainingConfig(epochs=3, batch_size=20, eps=0.1, attack_steps=2, validation_steps=2)
    train_classifier(model, *bars(), bars(40, seed=1), config, run=Run(0))
    images, labels = bars(30, seed=2)
    model.train()
    before, state = {name: t.clone() for name, t in model.state_dict().items()}, torch.get_rng_state()
    found = autoattack(model, images, labels, eps=0.15, seed=0, **QUICK)
    again = autoattack(model, images, labels, eps=0.15, seed=0, **QUICK)
    assert found == again
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    pgd = measure_benchmark(model, images, labels, eps=0.15, seed=0, steps=5, restarts=1)
    assert found.clean_accuracy == pytest.approx(pgd.clean_accuracy)
    assert found.robust_accuracy <= pgd.robust_accuracy + 1 / 30
    assert found.attacks == ("apgd-ce", "apgd-t", "fab-t", "square")
