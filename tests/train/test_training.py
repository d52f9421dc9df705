import math

import pytest
import torch

from s2ap_defend.errors import RecipeError
from s2ap_train.models import SmallCNN
from s2ap_train.models.weight_average import WeightAverage
from s2ap_train.training import (
    EpochChoice,
    TrainingConfig,
    accuracy,
    batches,
    cosine,
    robust_accuracy,
    shifted,
    train_classifier,
)


def bars(count=80, seed=0):
    """Four classes: a bright bar in one of four places on a noisy 8x8 image."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    images = 0.3 * torch.rand(count, 1, 8, 8, generator=generator)
    for n, label in enumerate(labels.tolist()):
        images[n, :, 2 * label : 2 * label + 2] += 0.6
    return images, labels


def small(seed=0):
    return SmallCNN(classes=4, widths=(6, 8), pool_after=(0, 1), seed=seed)


def train(config, *, model=None, seed=0, **more):
    model = model or small()
    result = train_classifier(model, *bars(), bars(40, seed=1), config, seed=seed, **more)
    return model, result


NATURAL = TrainingConfig(epochs=4, lr=0.1, batch_size=20)
ROBUST = TrainingConfig(epochs=4, lr=0.1, batch_size=20, eps=0.15, attack_steps=2, validation_steps=3)


def test_natural_training_learns():
    model, result = train(NATURAL)
    assert accuracy(model, *bars(60, seed=2)) >= 0.95
    assert len(result.history) == 4
    assert set(result.history[0]) == {"loss", "validation_accuracy"}
    assert not model.training


def test_adversarial_training_is_more_robust_than_natural_training():
    natural, robust = train(NATURAL)[0], train(ROBUST)[0]
    test = bars(60, seed=2)
    assert robust_accuracy(robust, *test, eps=0.25, steps=10) > robust_accuracy(natural, *test, eps=0.25, steps=10)


@pytest.mark.parametrize(
    "config",
    [
        NATURAL,
        TrainingConfig(
            epochs=2, batch_size=20, eps=0.1, attack_steps=1, shift=1, weight_radius=0.01, average_decay=0.9
        ),
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
        seed=0,
        on_epoch=lambda epoch, record: seen.append((epoch, model.classifier.weight.detach().clone(), dict(record))),
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


def test_weight_perturbation_changes_training_but_not_how_often_statistics_are_averaged():
    plain, perturbed = (
        train(TrainingConfig(epochs=1, batch_size=20, weight_radius=radius))[0] for radius in (0.0, 0.05)
    )
    assert not torch.equal(plain.classifier.weight, perturbed.classifier.weight)
    for model in (plain, perturbed):
        assert model.each_block()[0].norm.num_batches_tracked == 4


def test_masked_weights_stay_exactly_zero():
    masks = {"blocks.1.convolution.weight": torch.rand(8, 6, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.6}
    model, _ = train(ROBUST, masks=masks)
    weight = model.each_block()[1].convolution.weight
    assert torch.count_nonzero(weight[~masks["blocks.1.convolution.weight"]]) == 0
    assert torch.count_nonzero(weight) == masks["blocks.1.convolution.weight"].sum()


def test_a_mask_without_a_weight_is_refused():
    with pytest.raises(RecipeError, match=r"no weight of shape \(2,\) is named 'conv9.weight'"):
        train(NATURAL, masks={"conv9.weight": torch.ones(2, dtype=torch.bool)})


def test_a_loss_that_explodes_is_reported():
    with pytest.raises(RecipeError, match=r"the loss is nan after epoch 0 of 4; lower lr"):
        train_classifier(small(), bars()[0] * math.nan, bars()[1], bars(), NATURAL, seed=0)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"eps": -0.1}, {"average_decay": 1.0}, {"attack_steps": 0}])
def test_a_config_that_cannot_be_trained_is_refused(wrong):
    with pytest.raises(RecipeError, match="this cannot be trained"):
        TrainingConfig(**wrong)


def test_batches_are_a_permutation_in_nearly_equal_parts():
    parts = batches(101, 50, torch.Generator().manual_seed(0))
    assert [len(part) for part in parts] == [34, 34, 33]
    assert sorted(torch.cat(parts).tolist()) == list(range(101))


def test_the_cosine_starts_at_the_rate_and_ends_at_zero():
    assert [round(cosine(0.1, epoch, 10), 12) for epoch in (0, 5, 10)] == [0.1, 0.05, 0.0]


def test_shifts_move_the_image_by_at_most_the_limit_and_fill_with_zeros():
    images = torch.zeros(200, 1, 5, 5)
    images[:, :, 2, 2] = 1.0
    moved = shifted(images, 1, torch.Generator().manual_seed(0))
    assert torch.equal(moved.sum(dim=(1, 2, 3)), torch.ones(200))
    places = {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()}
    assert places == {(row, column) for row in (1, 2, 3) for column in (1, 2, 3)}
    edge = shifted(torch.ones(50, 1, 4, 4), 1, torch.Generator().manual_seed(0))
    assert set(edge.sum(dim=(1, 2, 3)).tolist()) == {9.0, 12.0, 16.0}
    assert shifted(images, 0, torch.Generator()) is images


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
