from dataclasses import replace

import pytest
import torch
from tests.train.toy_data import bars

from s2ap_defend.errors import RecipeError
from s2ap_train.models import SmallCNN
from s2ap_train.models.weight_average import WeightAverage
from s2ap_train.storage.snapshots import Snapshots
from s2ap_train.training import (
    EpochChoice,
    Run,
    TrainingConfig,
    accuracy,
    robust_accuracy,
    train_classifier,
    validate,
)


def small(seed=0):
    return SmallCNN(classes=4, widths=(6, 8), pool_after=(0, 1), seed=seed)


def train(config, *, model=None, seed=0, snapshots=None, on_epoch=None, **more):
    model = model or small()
    run = Run(seed, snapshots=snapshots, on_epoch=on_epoch)
    result = train_classifier(model, *bars(), bars(40, seed=1), config, run=run, **more)
    return model, result


NATURAL = TrainingConfig(epochs=4, lr=0.1, batch_size=20, loss="natural", eps=0.0)
ROBUST = TrainingConfig(epochs=4, lr=0.1, batch_size=20, eps=0.15, attack_steps=2, validation_steps=3)
TRADES, MART = replace(ROBUST, loss="trades"), replace(ROBUST, loss="mart")


def test_natural_training_learns():
    model, result = train(NATURAL)
    assert accuracy(model, *bars(60, seed=2)) >= 0.95
    assert len(result.history) == 4
    assert set(result.history[0]) == {"loss", "validation_accuracy", "largest_class_share"}
    assert not model.training


@pytest.mark.parametrize("config", [ROBUST, TRADES, MART])
def test_adversarial_training_is_more_robust_than_natural_training(config):
    natural, robust = train(NATURAL)[0], train(config)[0]
    test = bars(60, seed=2)
    assert robust_accuracy(robust, *test, eps=0.25, steps=10) > robust_accuracy(natural, *test, eps=0.25, steps=10)


@pytest.mark.parametrize(
    "config",
    [
        NATURAL,
        replace(ROBUST, epochs=2, shift=1, flip=True, weight_radius=0.01, average_decay=0.9),
        replace(TRADES, epochs=1),
        replace(MART, epochs=1),
    ],
)
def test_the_seed_decides_every_weight(config):
    first, same, other = (train(config, seed=seed)[0] for seed in (3, 3, 4))
    for a, b in zip(first.state_dict().values(), same.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_the_global_random_state_is_neither_used_nor_changed():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _ = train(ROBUST)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(train(ROBUST)[0].classifier.weight, first.classifier.weight)


def test_the_kept_weights_are_those_of_the_chosen_epoch():
    seen = []
    model = small()
    result = train_classifier(
        model,
        *bars(),
        bars(40, seed=1),
        NATURAL,
        run=Run(0, on_epoch=lambda n, record: seen.append((n, model.classifier.weight.detach().clone(), dict(record)))),
    )
    assert [epoch for epoch, _, _ in seen] == [0, 1, 2, 3]
    assert [record for _, _, record in seen] == list(result.history)
    assert torch.equal(model.classifier.weight, seen[result.best_epoch][1])


def test_a_late_epoch_wins_within_one_standard_error_and_loses_beyond_it():
    choice = EpochChoice(100)  # at .8 the standard error of 100 images is .04
    accuracies = [0.5, 0.8, 0.77, 0.75, 0.1]
    accepted = [choice.accepts(n, {"validation_accuracy": value}) for n, value in enumerate(accuracies)]
    assert accepted == [True, True, True, False, False]
    assert choice.epoch == 2


def test_robust_accuracy_decides_where_there_is_one():
    choice = EpochChoice(10_000)
    choice.accepts(0, {"validation_accuracy": 0.5, "validation_robust_accuracy": 0.4})
    assert not choice.accepts(1, {"validation_accuracy": 0.9, "validation_robust_accuracy": 0.3})


@pytest.mark.parametrize("config", [ROBUST, replace(TRADES, weight_radius=0.01, average_decay=0.9)])
def test_masked_weights_stay_exactly_zero(config):
    masks = {"blocks.1.convolution.weight": torch.rand(8, 6, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.6}
    model, _ = train(config, masks=masks)
    weight = model.each_block()[1].convolution.weight
    assert torch.count_nonzero(weight[~masks["blocks.1.convolution.weight"]]) == 0
    assert torch.count_nonzero(weight) == masks["blocks.1.convolution.weight"].sum()


def test_a_mask_without_a_weight_is_refused():
    with pytest.raises(RecipeError, match=r"no weight of shape \(2,\) is named 'conv9.weight'"):
        train(NATURAL, masks={"conv9.weight": torch.ones(2, dtype=torch.bool)})


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"eps": -0.1}, {"average_decay": 1.0}, {"attack_steps": 0}])
def test_a_config_that_cannot_be_trained_is_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(RecipeError, match=f"^this cannot be trained: {name} = {value}; counts start at 1"):
        TrainingConfig(**wrong)


MASKED = "blocks.1.convolution.weight"


def test_masks_can_be_changed_after_a_step_and_what_changed_starts_without_momentum():
    generator = torch.Generator().manual_seed(0)
    masks = {MASKED: torch.rand(8, 6, 3, 3, generator=generator) > 0.5}
    given, steps = masks[MASKED].clone(), []
    leaves, returns = torch.zeros(2, *given.shape, dtype=torch.bool)
    leaves.view(-1)[given.flatten().nonzero()[:5, 0]] = True
    returns.view(-1)[(~given).flatten().nonzero()[:5, 0]] = True

    def swap(step, parameters, masks, optimiser):
        steps.append(step)
        weight = parameters[MASKED]
        momentum = optimiser.state[weight]["momentum_buffer"]
        if step == 9:
            assert torch.count_nonzero(momentum[leaves]) == 5
            masks[MASKED] = given ^ (leaves | returns)
        if step == 10:  # the first step after the swap: what returned was 0 and has one gradient for momentum
            assert torch.count_nonzero(momentum[leaves]) == 0
            assert torch.equal(momentum[returns], weight.grad[returns])
        return step == 9

    model, _ = train(NATURAL, masks=masks, mask_update=swap)
    assert steps == list(range(16))
    assert torch.equal(masks[MASKED], given ^ (leaves | returns))
    weight = model.get_parameter(MASKED)
    assert torch.count_nonzero(weight[~masks[MASKED]]) == 0
    assert torch.count_nonzero(weight[returns]) == 5


def test_the_masks_of_the_chosen_epoch_are_handed_back():
    masks = {MASKED: torch.ones(8, 6, 3, 3, dtype=torch.bool)}

    def kill_a_channel_a_step(step, parameters, masks, optimiser):
        masks[MASKED][step // 2] = False  # the last epoch ends with every channel dead
        return True

    model, result = train(NATURAL, masks=masks, mask_update=kill_a_channel_a_step)
    assert masks[MASKED].any(dim=(1, 2, 3)).logical_not().sum() == 2 * (result.best_epoch + 1)
    weight = model.get_parameter(MASKED)
    assert torch.count_nonzero(weight[~masks[MASKED]]) == 0


def test_an_average_of_weights_is_masked_when_masks_change():
    masks = {MASKED: torch.ones(8, 6, 3, 3, dtype=torch.bool)}

    def drop_late(step, parameters, masks, optimiser):
        masks[MASKED][0] = step < 12
        return step == 12

    model, _ = train(replace(NATURAL, average_decay=0.9, validate_every=4), masks=masks, mask_update=drop_late)
    assert torch.count_nonzero(model.get_parameter(MASKED)[0]) == 0
    assert torch.count_nonzero(model.get_parameter(MASKED)[1]) > 0


def test_patience_ends_a_training_that_does_not_get_better():
    still = replace(NATURAL, epochs=9, lr=0.0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
    assert len(train(still, model=model)[1].history) == 9
    result = train(replace(still, patience=2), model=model)[1]
    assert (len(result.history), result.stopped_early) == (3, True)
    rare = train(replace(still, patience=2, validate_every=2), model=model)[1]
    assert (len(rare.history), rare.stopped_early) == (6, True)


def test_patience_counts_validated_epochs_since_the_best():
    choice = EpochChoice(10_000)
    for n, value in enumerate([0.5, 0.6, 0.599, 0.598]):
        choice.accepts(n, {"validation_accuracy": value})
    assert choice.waited == 2
    assert choice.out_of_patience(2)
    assert not choice.out_of_patience(3)
    assert not choice.out_of_patience(0)


def test_validation_says_how_often_the_most_predicted_class_is_predicted():
    images, labels = bars(40)
    record = validate(lambda x: torch.eye(4)[[3] * len(x)], (images, labels), NATURAL)
    assert record["largest_class_share"] == 1.0
    assert record["validation_accuracy"] == (labels == 3).sum().item() / 40


def test_the_weight_average_lies_between_and_follows():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = WeightAverage(model, decay=0.9)
    model.weight.data.fill_(1.0)
    average.update(model)  # first decay min(.9, 1 / 10)
    assert average.model.weight.item() == pytest.approx(0.9)
    for _ in range(300):
        average.update(model)
    assert average.model.weight.item() == pytest.approx(1.0, abs=1e-6)


class Dropping(SmallCNN):
    """A network that draws from the global random state while it trains."""

    def forward(self, images):
        return torch.nn.functional.dropout(super().forward(images), 0.3, self.training)


def test_layers_that_draw_for_themselves_draw_the_same_in_a_resumed_run(tmp_path):
    def trained(**more):
        return train(ROBUST, model=Dropping(classes=4, widths=(6, 8), pool_after=(0, 1)), **more)[0].state_dict()

    class StoppedError(Exception):
        pass

    def stop(epoch, _):
        torch.rand(1)  # whoever else draws in between
        if epoch == 1:
            raise StoppedError

    whole, again = trained(), trained()
    with pytest.raises(StoppedError):
        trained(snapshots=Snapshots(tmp_path / "s", "x"), on_epoch=stop)
    resumed = trained(snapshots=Snapshots(tmp_path / "s", "x"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, again[name])
        assert torch.equal(tensor, resumed[name])


def test_weights_are_perturbed_where_they_are_kept_and_by_the_radius_of_what_is_kept():
    """Each step has a pass at the weights and one at the perturbed ones; dead weights neither move nor count."""
    mask = torch.rand(8, 6, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.6
    model, passes = small(), []

    def note(layer, _):
        if layer.training:
            passes.append(layer.weight.detach().clone())

    model.blocks[1].convolution.register_forward_pre_hook(note)
    train(replace(ROBUST, epochs=1, weight_radius=0.05), model=model, masks={MASKED: mask})
    assert len(passes) == 2 * 4
    for weight, perturbed in zip(passes[::2], passes[1::2], strict=True):
        assert torch.count_nonzero(perturbed[~mask]) == 0
        assert float((perturbed - weight).norm() / weight.norm()) == pytest.approx(0.05, rel=1e-3)
