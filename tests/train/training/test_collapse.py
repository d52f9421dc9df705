import math

import pytest
import torch
from tests.train.toy_data import bars
from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_train.models import SmallCNN
from s2ap_train.training import CollapseWatch, Run, TrainingConfig, accuracy, train_classifier

NATURAL = TrainingConfig(epochs=8, lr=0.05, batch_size=20, loss="natural", eps=0.0)


def train(after_epoch, *, config=NATURAL, model=None):
    """Train while something happens to the training data after each epoch; (model, training, weights per epoch)."""
    model = model or SmallCNN(classes=4, widths=(6, 8), pool_after=(0, 1), seed=0)
    images, labels = bars()
    weights = []

    def on_epoch(epoch, record):
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        after_epoch(epoch, images, labels)

    result = train_classifier(model, images, labels, bars(40, seed=1), config, run=Run(0, on_epoch=on_epoch))
    return model, result, weights


def holds(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_poisoned_batch_ends_training_with_the_last_good_weights():
    def poison(epoch, images, labels):
        if epoch == 4:
            images[7] = math.nan

    model, result, weights = train(poison)
    assert result.collapse == "epoch 5: the loss is nan"
    assert len(result.history) == 5
    assert result.best_epoch == 4
    assert holds(model, weights[4])
    assert accuracy(model, *bars(60, seed=2)) >= 0.9


def test_labels_that_no_longer_mean_anything_end_training_at_chance():
    def turn(epoch, images, labels):
        if epoch == 4:
            labels.copy_((labels + 1) % 4)

    model, result, weights = train(turn)
    assert "which is chance, after" in result.collapse
    assert len(result.history) < 8
    assert holds(model, weights[result.best_epoch])
    assert accuracy(model, *bars(60, seed=2)) >= 0.9


def test_a_network_that_comes_to_say_one_class_ends_training():
    def one_class(epoch, images, labels):
        if epoch == 4:
            labels.fill_(2)

    model, result, weights = train(one_class)
    assert "one class takes" in result.collapse
    assert result.history[-1]["largest_class_share"] > 0.5
    assert len(result.history) < 8
    assert holds(model, weights[result.best_epoch])
    assert accuracy(model, *bars(60, seed=2)) >= 0.9


def test_a_rate_that_is_far_too_high_before_any_good_epoch_is_an_error():
    config = TrainingConfig(epochs=4, lr=1e30, batch_size=20, loss="natural", eps=0.0)
    with pytest.raises(
        RecipeError, match=r"the loss is nan in epoch 0 of 4, and no epoch before it was good; lower lr"
    ):
        train(lambda *_: None, config=config)


def test_weights_that_overflow_in_the_last_step_are_not_handed_back():
    """The loss of a step is taken before its weights are: here it is finite, and the weights after it are not."""
    config = TrainingConfig(epochs=1, lr=1e38, batch_size=80, weight_decay=10.0, loss="natural", eps=0.0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    nn.init.constant_(model[1].weight, 0.9)
    with pytest.raises(RecipeError, match="the loss is nan in epoch 0"):
        train(lambda *_: None, config=config, model=model)


def test_a_network_that_never_learned_has_not_collapsed():
    still = TrainingConfig(epochs=3, lr=0.0, batch_size=20, loss="natural", eps=0.0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    nn.init.zeros_(model[1].weight)
    _, result, _ = train(lambda *_: None, config=still, model=model)
    assert result.history[0]["largest_class_share"] == 1.0
    assert (result.collapse, len(result.history)) == (None, 3)


def test_an_epoch_that_tells_classes_apart_wins_against_one_that_always_says_the_same():
    """A constant network cannot be attacked: its robust accuracy is the share of labels that its class has."""
    (images, labels), (held_out, its_labels) = bars(), bars(40, seed=1)
    validation = held_out[its_labels < 2], its_labels[its_labels < 2]
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    nn.init.zeros_(model[1].weight)
    nn.init.constant_(model[1].bias[:1], 5.0)
    config = TrainingConfig(epochs=6, lr=0.02, batch_size=20, eps=0.45, attack_steps=1, attack_step_size=0.01)
    result = train_classifier(model, images[labels < 2], labels[labels < 2], validation, config, run=Run(0))
    first, kept = result.history[0], result.history[result.best_epoch]
    assert first["largest_class_share"] == 1.0
    assert first["validation_robust_accuracy"] > 0.5 > kept["validation_robust_accuracy"]
    assert kept["validation_accuracy"] >= 0.9
    assert accuracy(model, *validation) == kept["validation_accuracy"]


def record(accuracy=0.9, share=0.2, loss=1.0):
    return {"loss": loss, "validation_accuracy": accuracy, "largest_class_share": share}


def test_chance_has_an_error_bar_and_must_be_fallen_to():
    labels = torch.arange(10).repeat(10)  # 100 images: chance ends at .1 + 3 * .03 = .19
    fresh = CollapseWatch(10, labels)
    assert fresh.reason(record(0.10)) is None
    assert not fresh.has_learned
    assert fresh.reason(record(0.20)) is None
    assert fresh.has_learned
    assert fresh.reason(record(0.19)) is None  # no fall: the difference of the two is noise
    assert fresh.reason(record(0.60)) is None
    assert fresh.reason(record(0.19)) == "accuracy is 19.0%, which is chance, after 60.0% in an earlier epoch"
    assert fresh.reason(record(0.20)) is None


def test_a_class_may_have_half_of_the_predictions_where_it_has_half_of_the_labels():
    balanced, skewed = torch.arange(10).repeat(100), torch.zeros(1000, dtype=torch.int64)
    skewed[:400] = torch.arange(400) % 10
    for labels, reason in ((balanced, True), (skewed, False)):
        watch = CollapseWatch(10, labels)
        assert watch.reason(record(share=0.5)) is None
        assert (watch.reason(record(0.4, share=0.66)) is not None) is reason
    assert watch.reason(record(0.2, share=0.8)) is not None  # 64 % of these labels are one class


def test_an_epoch_that_was_not_validated_is_judged_by_its_loss():
    watch = CollapseWatch(2, torch.tensor([0, 1]))
    assert watch.reason({"loss": 3.0}) is None
    assert watch.reason({"loss": math.inf}) == "the loss is inf"


def test_a_watch_goes_on_from_its_state():
    labels = torch.arange(10).repeat(10)
    first, second = CollapseWatch(10, labels), CollapseWatch(10, labels)
    first.reason(record(0.8))
    second.restore(first.state())
    assert second.reason(record(0.1)) == first.reason(record(0.1)) is not None
