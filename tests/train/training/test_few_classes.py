"""Every loss of training on two classes, where the runner-up is the only other class, and on a thousand."""

import pytest
import torch

from s2ap_train.models import SmallCNN
from s2ap_train.training.config import TrainingConfig
from s2ap_train.training.losses import adversarial_examples, robust_loss, runner_up_margin


@pytest.mark.parametrize("classes", [2, 3, 1000])
@pytest.mark.parametrize("loss", ["natural", "pgd", "trades", "mart"])
def test_every_loss_is_finite_and_has_a_gradient(loss, classes):
    config = TrainingConfig(loss=loss, eps=0.0 if loss == "natural" else 0.1, attack_steps=2, label_smoothing=0.1)
    generator = torch.Generator().manual_seed(0)
    model, x = SmallCNN(1, classes, [4, 4], 8, seed=0), torch.rand(6, 1, 8, 8, generator=generator)
    y = torch.randint(0, classes, (6,), generator=generator)
    attacked = adversarial_examples(model, x, y, eps=0.1, config=config, generator=generator)
    value = robust_loss(config, model, x, attacked, y)
    value.backward()
    assert value.isfinite()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())
    assert any((weight.grad != 0).any() for weight in model.parameters())


def test_with_two_classes_the_margin_of_the_runner_up_is_the_log_probability_of_the_label():
    logits, y = torch.tensor([[1.0, 3.0], [40.0, -40.0]]), torch.tensor([0, 0])
    torch.testing.assert_close(runner_up_margin(logits, y), logits.log_softmax(1)[:, 0])
