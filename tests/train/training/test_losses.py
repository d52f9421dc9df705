import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from s2ap_defend.errors import RecipeError
from s2ap_train.models import SmallCNN
from s2ap_train.training import Run, TrainingConfig, adversarial_examples, robust_loss, start_noise, train_classifier
from s2ap_train.training.losses import kl_divergence, runner_up_margin

ROBUST = ("pgd", "trades", "mart")


def config(loss, **more):
    return TrainingConfig(loss=loss, **({"eps": 0.0} if loss == "natural" else {"eps": 0.1}) | more)


def images(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.randint(0, 4, (count,), generator=generator)


def network():
    return SmallCNN(classes=4, widths=(6, 8), pool_after=(0, 1), seed=0)


class Counting(nn.Module):
    """A linear network that counts its passes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 4)
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(0))
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        return self.linear(x.flatten(1))


def logits_of(*probabilities):
    return torch.tensor([probabilities]).log() + 0.7  # a shift that softmax does not see


def test_trades_is_the_clean_cross_entropy_and_beta_times_the_divergence():
    clean, moved, y = logits_of(0.5, 0.5), logits_of(0.75, 0.25), torch.tensor([1])
    expected = math.log(2) + 6 * 0.5 * math.log(4 / 3)
    assert robust_loss(config("trades"), lambda x: x, clean, moved, y).item() == pytest.approx(expected, rel=1e-6)


def test_mart_is_the_boosted_cross_entropy_and_the_divergence_weighted_by_doubt():
    clean, moved, y = logits_of(0.25, 0.5, 0.25), logits_of(0.5, 0.3, 0.2), torch.tensor([1])
    divergence = 0.25 * math.log(0.5) + 0.5 * math.log(5 / 3) + 0.25 * math.log(5 / 4)
    expected = -math.log(0.3) - math.log(1 - 0.5) + 5 * (1 - 0.5) * divergence
    assert robust_loss(config("mart"), lambda x: x, clean, moved, y).item() == pytest.approx(expected, rel=1e-6)


def test_the_divergence_is_summed_over_classes_and_averaged_over_the_batch():
    clean = torch.cat([logits_of(0.5, 0.5), logits_of(0.5, 0.5)])
    moved = torch.cat([logits_of(0.75, 0.25), logits_of(0.5, 0.5)])
    y = torch.tensor([0, 0])
    loss = robust_loss(config("trades", beta=2.0), lambda x: x, clean, moved, y)
    assert loss.item() == pytest.approx(math.log(2) + 2 * (0.5 * math.log(4 / 3) + 0) / 2, rel=1e-6)


def test_the_divergence_is_nothing_for_images_that_were_not_moved():
    x, y = images()
    model = network().eval()
    trades = robust_loss(config("trades"), model, x, x, y)
    assert trades.item() == pytest.approx(cross_entropy(model(x), y).item(), abs=1e-6)
    assert kl_divergence(model(x), model(x)).abs().max() < 1e-6


def test_trades_without_its_divergence_is_natural_training_on_clean_images():
    x, y = images()
    moved, _ = images(seed=1)
    model = network().eval()
    assert robust_loss(config("trades", beta=0.0), model, x, moved, y) == robust_loss(
        config("natural"), model, x, moved, y
    )


def test_mart_without_its_divergence_lies_above_the_adversarial_cross_entropy_by_the_margin():
    x, y = images()
    model = network().eval()
    mart, pgd = (robust_loss(config(*c), model, x, x, y) for c in (("mart",), ("pgd",)))
    probabilities = model(x).softmax(1).double()
    wrong = probabilities.scatter(1, y[:, None], 0.0).max(1).values
    assert mart.item() == pytest.approx(pgd.item() - torch.log(1 - wrong).mean().item(), rel=1e-5)


def test_the_margin_is_exact_where_a_probability_rounds_to_one():
    logits = torch.tensor([[60.0, 0.0, -1.0]], requires_grad=True)
    margin = runner_up_margin(logits, torch.tensor([1]))
    assert margin.item() == pytest.approx(math.log(1 + math.exp(-1)) - 60, rel=1e-6)
    (gradient,) = torch.autograd.grad(margin.sum(), logits)
    assert gradient[0, 0].item() == pytest.approx(-1.0)


def test_the_runner_up_is_never_the_label():
    margin = runner_up_margin(logits_of(0.6, 0.3, 0.1), torch.tensor([0]))
    assert margin.item() == pytest.approx(math.log(1 - 0.3), rel=1e-5)


@pytest.mark.parametrize("loss", ROBUST)
def test_every_robust_loss_has_a_gradient_in_the_attacked_pass(loss):
    x, y = images()
    moved = images(seed=1)[0].requires_grad_()
    robust_loss(config(loss), network().eval(), x, moved, y).backward()
    assert moved.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", ROBUST)
@pytest.mark.parametrize("eps", [0.0005, 0.1, 0.9])
def test_examples_never_leave_the_ball_or_the_box(loss, eps):
    x, y = images(20)
    x[:5], x[5:10] = 0.0, 1.0
    generator = torch.Generator().manual_seed(0)
    found = adversarial_examples(network(), x, y, eps=eps, config=config(loss, eps=eps), generator=generator)
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.all(found >= (x - eps).clamp_min(0))
    assert torch.all(found <= (x + eps).clamp_max(1))
    assert not torch.equal(found, x)
    assert not found.requires_grad


def test_natural_training_attacks_nothing():
    x, y = images()
    model = Counting()
    assert adversarial_examples(model, x, y, eps=0.0, config=config("natural"), generator=None) is x
    assert model.passes == 0


def test_trades_computes_the_clean_probabilities_once_in_an_attack():
    x, y = images()
    for loss, passes in (("pgd", 7), ("mart", 7), ("trades", 8)):
        model = Counting()
        adversarial_examples(
            model, x, y, eps=0.1, config=config(loss, attack_steps=7), generator=torch.Generator().manual_seed(0)
        )
        assert model.passes == passes


def test_trades_looks_for_divergence_and_pgd_for_the_wrong_label():
    x, y = images(40)
    model = network().eval()
    found = {
        loss: adversarial_examples(
            model, x, y, eps=0.2, config=config(loss), generator=torch.Generator().manual_seed(0)
        )
        for loss in ("pgd", "trades")
    }
    with torch.no_grad():
        divergence = {loss: kl_divergence(model(x), model(moved)).mean() for loss, moved in found.items()}
        error = {loss: cross_entropy(model(moved), y) for loss, moved in found.items()}
    assert divergence["trades"] > divergence["pgd"]
    assert error["pgd"] > error["trades"]


def test_the_attacks_start_as_their_papers_say():
    x = torch.zeros(2000, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    normal = start_noise(x, config("trades"), generator)
    assert normal.std().item() == pytest.approx(0.001, rel=3 / math.sqrt(2 * 2000))
    uniform = start_noise(x, config("pgd"), generator)
    assert uniform.abs().max() <= 1
    assert uniform.std().item() == pytest.approx(3**-0.5, rel=0.05)
    assert start_noise(x, config("natural"), generator) is None


def test_examples_leave_modes_statistics_and_gradients_of_the_network_alone():
    x, y = images()
    for loss in ROBUST:
        model = network().train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        adversarial_examples(model, x, y, eps=0.1, config=config(loss), generator=torch.Generator().manual_seed(0))
        assert all(module.training for module in model.modules())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("loss", "passes"), [("natural", 1), ("pgd", 1), ("trades", 2), ("mart", 2)])
def test_the_ascent_of_weight_perturbation_leaves_statistics_alone_for_every_loss(loss, passes):
    x, y = images(40)
    plain, perturbed = network(), network()
    for model, radius in ((plain, 0.0), (perturbed, 0.05)):
        settings = config(loss, epochs=1, batch_size=10, attack_steps=1, validation_steps=1, weight_radius=radius)
        train_classifier(model, x, y, (x, y), settings, run=Run(0))
        assert model.each_block()[0].norm.num_batches_tracked == 4 * passes
    assert not torch.equal(plain.classifier.weight, perturbed.classifier.weight)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loss": "natural"}, r'loss "natural" trains on clean images, but eps is 0.0313725; set eps = 0'),
        ({"eps": 0.0}, r'eps is 0, but loss "pgd" trains on attacked images; set eps above 0, or say loss = "natural"'),
        ({"loss": "trade"}, r"loss 'trade' is not known; choose from pgd, trades, mart, natural"),
        ({"beta": 3.0}, r'loss "pgd" has no beta, found 3; leave it out'),
        ({"loss": "trades", "beta": -1.0}, "this cannot be trained"),
        ({"lr": math.nan}, "this cannot be trained"),
    ],
)
def test_natural_training_must_be_said_and_beta_must_have_a_meaning(wrong, message):
    with pytest.raises(RecipeError, match=message):
        TrainingConfig(**wrong)


def test_beta_is_that_of_the_papers_unless_it_is_given():
    found = [config(loss).kl_weight for loss in ("trades", "mart", "pgd")]
    assert found == [6.0, 5.0, 0.0]
    assert config("mart", beta=2.0).kl_weight == 2.0
