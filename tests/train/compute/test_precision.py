import torch
from tests.train.toy_data import bars
from torch import nn

from s2ap_train.attacks.pgd import pgd
from s2ap_train.compute import Compute
from s2ap_train.models import SmallCNN
from s2ap_train.training import Run, TrainingConfig, train_classifier


def small():
    return SmallCNN(classes=4, widths=(6, 8), pool_after=(0, 1), seed=0)


def test_bfloat16_trains_and_keeps_its_weights_in_32_bit():
    model, exact = small(), small()
    config = TrainingConfig(epochs=4, lr=0.1, batch_size=20, eps=0.1, attack_steps=2, validation_steps=2)
    result = train_classifier(
        model, *bars(), bars(40, seed=1), config, run=Run(0, Compute("cpu", precision="bf16", channels_last=True))
    )
    train_classifier(exact, *bars(), bars(40, seed=1), config, run=Run(0))
    assert result.history[-1]["validation_accuracy"] >= 0.9
    assert all(value.dtype != torch.bfloat16 for value in model.state_dict().values())
    assert not torch.equal(model.classifier.weight, exact.classifier.weight)
    low_bits = model.classifier.weight.detach().view(torch.int32) & 0xFFFF
    assert torch.count_nonzero(low_bits) > 0  # values that bfloat16 does not have


def test_float16_gradients_that_would_round_to_zero_are_scaled_and_those_that_overflow_are_taken_again():
    x = torch.full((1, 8), 1e-4)
    for factor, halvings in ((1e-5, 0), (1e3, None)):
        weight = torch.ones(8, 8, requires_grad=True)
        half, full = Compute("cpu", precision="16"), Compute("cpu")
        first = half.loss_scale

        def loss_under(compute, weight=weight, factor=factor):
            with compute.autocast():
                return (torch.nn.functional.linear(x, weight).float() * factor).sum()

        (exact,) = full.gradients(loss_under(full), [weight])
        (found,) = half.gradients(loss_under(half), [weight])
        assert found.dtype == torch.float32
        assert torch.allclose(found, exact, rtol=2e-3)  # float16 has 11 bits
        assert (half.loss_scale == first) is (halvings == 0)
        (unscaled,) = torch.autograd.grad(loss_under(half), weight)
        if halvings == 0:
            assert torch.count_nonzero(unscaled) == 0


def test_a_gradient_that_is_not_a_number_stays_one_in_float16():
    weight = torch.ones(3, requires_grad=True)
    half = Compute("cpu", precision="16")
    (gradient,) = half.gradients((weight * float("nan")).sum(), [weight])
    assert gradient.isnan().all()
    assert half.loss_scale == 1.0


def test_the_loss_scale_grows_after_a_long_time_without_overflow_and_is_part_of_the_state():
    weight = torch.ones(1, requires_grad=True)
    half = Compute("cpu", precision="16")
    half.restore({"loss_scale": 8.0, "steps_since_overflow": 1998})
    scales = []
    for _ in range(3):
        half.gradients(weight.sum(), [weight])
        scales.append(half.loss_scale)
    assert scales == [8.0, 16.0, 16.0]
    assert half.state() == {"loss_scale": 16.0, "steps_since_overflow": 1}


def test_a_float16_attack_moves_images_that_the_network_is_sure_of():
    """Their gradient at the logits is about 1e-12, which float16 rounds to 0."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    images, labels = torch.full((2, 1, 8, 8), 0.5), torch.tensor([0, 1])
    nn.init.normal_(network[1].weight, std=0.01, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network[1].bias.copy_(torch.tensor([28.0, 28.0, 0.0, 0.0]))
        network[1].weight[0], network[1].weight[1] = 0.4, -0.4
        labels = network(images).argmax(1)
    found = {}
    for precision in ("32", "16"):
        with Compute("cpu", precision=precision).autocast():
            found[precision] = pgd(network, images, labels, eps=0.1, steps=1, step_size=0.1, random_start=False)
    assert (found["32"] - images).abs().min() > 0.09
    assert torch.equal(found["16"], found["32"])


def test_float16_trains_against_attacks_whose_gradients_would_round_to_zero():
    """On the CPU only because there it can be tested anywhere; `launch` gives float16 to CUDA devices."""
    model = small()
    config = TrainingConfig(epochs=3, lr=0.1, batch_size=20, eps=0.1, attack_steps=2, validation_steps=2)
    result = train_classifier(model, *bars(), bars(40, seed=1), config, run=Run(0, Compute("cpu", precision="16")))
    assert result.collapse is None
    assert result.history[-1]["validation_accuracy"] >= 0.9
