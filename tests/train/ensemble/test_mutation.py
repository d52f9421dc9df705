"""The operators of model mutation testing, checked by hand and against what they mean."""

import copy

import pytest
import torch
from tests.train.toy_data import bars, same
from torch import nn

from s2ap_defend import RecipeError
from s2ap_train.ensemble import Mutation, mutant, mutate
from s2ap_train.models import ResNet18, SmallCNN, fold_batch_norm
from s2ap_train.models.classifier import Classifier
from s2ap_train.pruning.scores import prunable_weights
from s2ap_train.training import Run, TrainingConfig, accuracy, train_classifier

NEURONS = ("ws", "ns", "nai")


class Tiny(Classifier):
    """One pixel of two channels -> four neurons -> two classes, all numbers known."""

    def __init__(self) -> None:
        super().__init__(2, 2, 1)
        self.hidden, self.answer = nn.Linear(2, 4), nn.Linear(4, 2)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]))
            self.hidden.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
            self.answer.weight.copy_(torch.tensor([[1.0, -1.0, 1.0, -1.0], [0.5, 0.5, 0.5, 0.5]]))
            self.answer.bias.zero_()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.answer(torch.relu(self.hidden(images.flatten(1))))

    def arguments(self) -> dict[str, object]:
        return {}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noisy(model: nn.Module) -> nn.Module:
    """With the statistics, scales and shifts of a trained network."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator(len(tensor)))
    return model.eval()


@pytest.fixture(scope="module")
def base():
    model = SmallCNN(classes=4, widths=(8, 10), pool_after=(0, 1), seed=1)
    train_classifier(
        model, *bars(), bars(40, seed=1), TrainingConfig(epochs=6, batch_size=20, loss="natural", eps=0.0), run=Run(0)
    )
    return model


def rows_that_changed(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    return (before != after).flatten(1).any(1).nonzero().flatten().tolist()


def test_the_inverse_negates_weights_and_bias_of_its_neurons_by_hand():
    first = Tiny()
    changed = mutate(first, "nai", 0.5, generator())
    rows = rows_that_changed(first.hidden.weight, changed.hidden.weight)
    assert len(rows) == 2, "half of four neurons"
    image = torch.tensor([[[[1.0]], [[-1.0]]]])
    before, after = first.hidden(image.flatten(1))[0], changed.hidden(image.flatten(1))[0]
    assert torch.allclose(before, torch.tensor([-0.9, -0.8, -0.7, -0.6]))
    for row in range(4):
        assert after[row] == (-before[row] if row in rows else before[row])
    assert float(first(image)[0, 1].detach()) == 0.0, "no neuron was active"
    assert float(changed(image)[0, 1].detach()) == pytest.approx(
        -0.5 * sum(float(before[row].detach()) for row in rows)
    )
    assert torch.equal(changed.answer.weight, first.answer.weight), "logits have no activation function"


def test_a_switch_exchanges_two_neurons_by_hand():
    first = Tiny()
    changed = mutate(first, "ns", 0.5, generator(1))
    (i, j) = rows_that_changed(first.hidden.weight, changed.hidden.weight)
    assert changed.hidden.weight[i].tolist() == first.hidden.weight[j].tolist()
    assert changed.hidden.weight[j].tolist() == first.hidden.weight[i].tolist()
    assert changed.hidden.bias[[i, j]].tolist() == first.hidden.bias[[j, i]].tolist()
    assert same(changed.answer.state_dict(), first.answer.state_dict())


def test_shuffling_permutes_the_weights_of_its_neurons_by_hand():
    first, changed = Tiny(), None
    for seed in range(20):  # of two weights every second permutation is the identity
        changed = mutate(first, "ws", 0.25, generator(seed))
        rows = rows_that_changed(first.hidden.weight, changed.hidden.weight)
        assert len(rows) <= 1
        if rows:
            assert changed.hidden.weight[rows[0]].tolist() == first.hidden.weight[rows[0]].flip(0).tolist()
            break
    else:
        pytest.fail("nothing was ever shuffled")
    assert torch.equal(changed.hidden.bias, first.hidden.bias)
    assert same(changed.answer.state_dict(), first.answer.state_dict())


@pytest.mark.parametrize("rate", [0.007, 0.1, 1.0])
def test_fuzzing_changes_exactly_the_share_of_the_weights(base, rate):
    changed = prunable_weights(mutate(base, "gf", rate, generator()))
    weights = prunable_weights(base)
    total = sum(weight.numel() for weight in weights.values())
    assert sum(int((changed[name] != weight).sum()) for name, weight in weights.items()) == round(rate * total)


def test_fuzzed_weights_are_drawn_around_the_old_ones_with_the_deviation_of_their_layer():
    model = SmallCNN(widths=(8, 40), pool_after=(0, 1), seed=3)
    model.each_block()[1].convolution.weight.data.mul_(7).add_(5)  # a layer's mean is not the centre of what is drawn
    changed = prunable_weights(mutate(model, "gf", 1.0, generator()))
    for name, weight in prunable_weights(model).items():
        moved = ((changed[name] - weight) / weight.std(correction=0)).detach().flatten()
        if len(moved) > 500:
            assert float(moved.mean()) == pytest.approx(0.0, abs=3 / len(moved) ** 0.5)
            assert float(moved.std()) == pytest.approx(1.0, abs=3 / (2 * len(moved)) ** 0.5)


@pytest.mark.parametrize("operator", ["gf", *NEURONS])
def test_a_mutant_is_one_of_its_seed_and_the_base_stays_as_it_is(base, operator):
    before = copy.deepcopy(base.state_dict())
    first, again, other = (mutate(base, operator, 0.2, generator(seed)) for seed in (0, 0, 1))
    assert same(base.state_dict(), before)
    assert same(first.state_dict(), again.state_dict())
    assert not same(first.state_dict(), other.state_dict())
    assert not same(first.state_dict(), before)


@pytest.mark.parametrize("operator", NEURONS)
@pytest.mark.parametrize(("rate", "neurons"), [(0.007, 1), (0.3, 5), (1.0, 18)])
def test_exactly_the_share_of_the_hidden_neurons_is_mutated(base, operator, rate, neurons):
    changed = mutate(base, operator, rate, generator(2))
    hidden = [(block.convolution, after.convolution) for block, after in zip(base.blocks, changed.blocks, strict=True)]
    count = sum(len(rows_that_changed(old.weight, new.weight)) for old, new in hidden)
    assert count == (2 * max(1, round(rate * 18 / 2)) if operator == "ns" else neurons)
    assert same(base.classifier.state_dict(), changed.classifier.state_dict()), "the answers are no neurons"


def test_shuffled_weights_stay_those_of_their_neuron(base):
    changed = mutate(base, "ws", 1.0, generator())
    for old, new in zip(base.blocks, changed.blocks, strict=True):
        for before, after in zip(old.convolution.weight, new.convolution.weight, strict=True):
            assert torch.equal(before.flatten().sort().values, after.flatten().sort().values)
        assert same(old.norm.state_dict(), new.norm.state_dict())


def test_a_switch_is_undone_by_switching_what_reads_the_neurons(base):
    changed = mutate(base, "ns", 0.2, generator(4))
    images = bars(8, seed=5)[0]
    assert not torch.allclose(changed(images), base(images), atol=1e-3)
    moved = {
        n: rows_that_changed(old.convolution.weight, new.convolution.weight)
        for n, (old, new) in enumerate(zip(base.blocks, changed.blocks, strict=True))
    }
    assert sum(map(len, moved.values())) == 4
    for n, rows in moved.items():
        weights = (base.blocks[n].convolution.weight, changed.blocks[n].convolution.weight)
        order = torch.arange(len(weights[0]))
        for row in rows:  # who stands where this row stood
            order[row] = next(other for other in rows if torch.equal(weights[1][row], weights[0][other]))
            assert order[row] != row
        with torch.no_grad():
            if n == 0:
                following = changed.blocks[1].convolution.weight
                following.copy_(following[:, order])
            else:
                changed.classifier.weight.copy_(
                    changed.classifier.weight.unflatten(1, (len(order), -1))[:, order].flatten(1)
                )
    assert torch.allclose(changed(images), base(images), atol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
def test_the_inverse_negates_what_batch_normalisation_hands_on(affine):
    model = noisy(SmallCNN(widths=(8, 10), pool_after=(0, 1), seed=1))
    if not affine:
        for block in model.each_block():
            block.norm.weight = block.norm.bias = None
    changed = mutate(model, "nai", 0.3, generator(0))
    images = bars(6)[0]
    for old, new in zip(model.blocks, changed.blocks, strict=True):
        features = torch.randn(4, old.convolution.in_channels, 8, 8, generator=generator())
        before, after = old.norm(old.convolution(features)), new.norm(new.convolution(features))
        rows = rows_that_changed(old.convolution.weight, new.convolution.weight)
        kept = [row for row in range(before.shape[1]) if row not in rows]
        assert rows
        assert torch.allclose(after[:, rows], -before[:, rows], atol=1e-5)
        assert torch.equal(after[:, kept], before[:, kept])
    assert torch.allclose(fold_batch_norm(changed)(images), changed(images), atol=1e-5), "exported as plain weights"


def test_residual_networks_are_mutated_layer_by_layer():
    model = noisy(ResNet18(1, 4, 8, width=0.0625))
    changed = mutate(model, "nai", 0.1, generator(1))
    block, mutated = model.stages[1][0], changed.stages[1][0]
    names = [name for name in prunable_weights(model) if name != "classifier.weight"]
    weights, after = prunable_weights(model), prunable_weights(changed)
    total = sum(len(weights[name]) for name in names)
    assert sum(len(rows_that_changed(weights[name], after[name])) for name in names) == round(0.1 * total)
    features = torch.randn(2, block.conv1.in_channels, 4, 4, generator=generator())
    rows = rows_that_changed(block.conv1.weight, mutated.conv1.weight)
    before, now = block.bn1(block.conv1(features)), mutated.bn1(mutated.conv1(features))
    assert torch.allclose(now[:, rows], -before[:, rows], atol=1e-5)
    assert changed(torch.rand(2, 1, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize("operator", ["gf", *NEURONS])
def test_a_kept_mutant_has_at_least_the_share_of_the_accuracy(base, operator):
    validation = bars(40, seed=1)
    whole = accuracy(base, *validation)
    made = mutant(base, validation, operator, Mutation(rate=0.15), seed=3)
    assert made.accuracy == accuracy(made.model, *validation) >= 0.9 * whole
    again = mutant(base, validation, operator, Mutation(rate=0.15), seed=3)
    assert (again.draws, again.accuracy) == (made.draws, made.accuracy)
    assert same(again.model.state_dict(), made.model.state_dict())
    other = mutant(base, validation, operator, Mutation(rate=0.15), seed=4)
    assert not same(other.model.state_dict(), made.model.state_dict())


def test_a_mutant_that_lost_too_much_is_drawn_again_with_other_numbers(base):
    validation, config = bars(40, seed=1), Mutation(rate=0.4)
    draws = [mutant(base, validation, "nai", config, seed=seed).draws for seed in range(6)]
    assert max(draws) > 1
    assert min(accuracy(mutate(base, "nai", 0.4, generator(seed)), *validation) for seed in range(6)) < 0.9


def test_when_no_draw_is_good_enough_it_says_so(base):
    config = Mutation(rate=1.0, least_accuracy=1.0, draws=3)
    with pytest.raises(RecipeError, match=r"none of 3 mutants by nai at rate 1 kept 100% .* lower rate or raise draws"):
        mutant(base, bars(40, seed=1), "nai", config, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 0.0}, "rate is 0"),
        ({"rate": 1.1}, "rate is 1.1"),
        ({"draws": 0}, "draws 0"),
        ({"operators": ()}, "give at least one of gf, ws, ns, nai"),
        ({"operators": ("gf", "xx")}, "give at least one of"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        Mutation(**settings)
