import logging
import os
import signal
from dataclasses import replace

import pytest
import torch
from tests.train.forked_process import ended, forked
from tests.train.toy_data import bars, same

from s2ap_defend.errors import RecipeError
from s2ap_train.models import SmallCNN
from s2ap_train.pruning.iterative import IterativeMagnitude, prune_iteratively
from s2ap_train.pruning.masks import kept_count
from s2ap_train.pruning.scores import prunable_weights
from s2ap_train.pruning.step_judge import dead_output_share
from s2ap_train.storage.snapshots import Snapshots
from s2ap_train.training import Run, TrainingConfig, train_classifier

RETRAINING = TrainingConfig(epochs=2, lr=0.05, batch_size=20, eps=0.1, attack_steps=1, validation_steps=2)
CONFIG = IterativeMagnitude(sparsity=0.6, step=0.3, training=RETRAINING)


def trained():
    model = SmallCNN(classes=4, widths=(6, 8), pool_after=(0, 1))
    train_classifier(model, *bars(), bars(40, seed=1), replace(RETRAINING, epochs=5, lr=0.1), run=Run(0))
    return model


@pytest.fixture(scope="module")
def base():
    return trained()


def prune(base, config=CONFIG, seed=0, **more):
    return prune_iteratively(base, *bars(), bars(40, seed=1), config, run=Run(seed, **more))


@pytest.mark.parametrize(
    ("step", "of", "target", "steps"),
    [
        (0.1, "remaining", 0.5, 7),
        (0.05, "remaining", 0.5, 14),
        (0.1, "initial", 0.5, 5),
        (0.1, "initial", 0.3, 3),
        (0.05, "initial", 0.5, 10),
        (0.2, "remaining", 0.36, 2),
        (0.9, "remaining", 0.5, 1),
    ],
)
def test_the_number_of_steps_is_that_of_the_practice(step, of, target, steps):
    schedule = IterativeMagnitude(sparsity=target, step=step, of=of).schedule()
    assert len(schedule) == steps
    assert schedule[-1] == target
    assert list(schedule) == sorted(set(schedule))


def test_a_schedule_of_the_remaining_worked_by_hand():
    """0.9, 0.81, 0.729, 0.6561, 0.59049, 0.531441 remain; the seventh step stops at half instead of 0.4783."""
    expected = (0.1, 0.19, 0.271, 0.3439, 0.40951, 0.468559, 0.5)
    assert IterativeMagnitude(sparsity=0.5, step=0.1).schedule() == pytest.approx(expected)


@pytest.mark.parametrize("scope", ["layer", "global", "lamp"])
def test_every_step_only_shrinks_the_mask_and_the_target_is_exact(base, scope):
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    seen = []
    result = prune(base, replace(CONFIG, scope=scope), on_epoch=lambda epoch, record: seen.append((epoch, record)))
    assert same(base.state_dict(), before), "the given network is not changed"
    assert result.collapse is None
    total = sum(m.numel() for m in result.masks.values())
    if scope == "layer":
        assert all(m.sum() == kept_count(m.numel(), 1 - 0.6) for m in result.masks.values())
    else:
        assert sum(int(m.sum()) for m in result.masks.values()) == kept_count(total, 1 - 0.6)
    assert result.reached_sparsity == pytest.approx(0.6, abs=3 / total)
    for name, weight in prunable_weights(result.model).items():
        assert torch.equal(weight != 0, result.masks[name])
    assert [step.sparsity for step in result.steps] == list(CONFIG.schedule())
    assert [record["step"] for record in result.history] == [1, 1, 2, 2, 3, 3]
    assert [epoch for epoch, _ in seen] == [0, 1, 2, 3, 4, 5]
    assert tuple(record for _, record in seen) == result.history
    for first in (0, 2, 4):
        shrunk = result.history[first]["sparsity"] - (result.history[first - 1]["sparsity"] if first else 0)
        assert result.history[first]["hamming"] == pytest.approx(shrunk), "no weight came back"
        assert result.history[first + 1]["hamming"] == 0
    assert result.best_epoch in (4, 5)
    assert all(step.robust_accuracy is not None for step in result.steps), "retraining is adversarial by default"
    assert not result.model.training


def test_the_same_seed_gives_the_same_mask_and_another_seed_another(base):
    first, again, other = prune(base), prune(base), prune(base, seed=7)
    assert same(first.masks, again.masks)
    assert same(first.model.state_dict(), again.model.state_dict())
    assert not same(first.masks, other.masks)


def test_retraining_that_diverges_is_taken_back_to_the_dense_network(base, caplog):
    with caplog.at_level(logging.WARNING):
        result = prune(base, replace(CONFIG, training=replace(RETRAINING, lr=1e30)))
    assert result.collapse is not None
    assert result.collapse.startswith("step 1 of 3, to sparsity 0.300, collapsed: ")
    assert result.collapse.endswith("this is the network of step 0, at sparsity 0.000")
    assert result.collapse in caplog.text
    assert same(result.model.state_dict(), base.state_dict())
    assert all(mask.all() for mask in result.masks.values())
    assert result.reached_sparsity == 0
    assert result.best_epoch == -1
    assert len(result.steps) == 1


@pytest.mark.parametrize(
    ("step", "limits", "reason"),
    [
        (0.2, {"largest_clean_drop": 0.01, "robust_margin": 0.0}, "clean accuracy fell by"),
        (0.2, {"largest_clean_drop": 1.0, "robust_margin": 0.3}, "robust accuracy is"),
        (0.5, {"largest_clean_drop": 1.0, "robust_margin": 0.0}, "one class takes"),
    ],
)
def test_a_collapse_rolls_back_to_the_last_good_step_and_says_why(base, step, limits, reason):
    """Retraining moves next to nothing, so that steps hurt more and more until one costs too much."""
    frozen = replace(RETRAINING, epochs=1, lr=1e-9)
    config = IterativeMagnitude(0.99, step, training=frozen, **limits)
    result = prune(base, config)
    good = len(result.steps) - 1
    assert 1 <= good < len(config.schedule())
    assert result.collapse is not None
    assert reason in result.collapse
    assert f"this is the network of step {good}, at sparsity" in result.collapse
    assert result.steps[-1].collapse is not None
    assert all(taken.collapse is None for taken in result.steps[:good])
    assert result.reached_sparsity == pytest.approx(config.schedule()[good - 1], abs=0.01)
    for name, weight in prunable_weights(result.model).items():
        assert torch.equal(weight != 0, result.masks[name])
    assert result.history[result.best_epoch]["step"] == good


def test_a_layer_that_pure_global_pruning_empties_is_a_collapse(base):
    model = trained()
    with torch.no_grad():
        first = next(iter(prunable_weights(model).values()))
        first.mul_(1e-4)
        model.blocks[0].norm.running_var.mul_(1e-8)
        model.blocks[0].norm.running_mean.mul_(1e-4)
        model.blocks[0].norm.eps = 1e-13
    config = replace(CONFIG, scope="global", minimum_kept=0, largest_dead_share=1.0)
    result = prune(model, config)
    assert result.collapse is not None
    assert "blocks.0.convolution.weight keeps 0 of 54 weights, fewer than 1" in result.collapse
    assert result.steps[-1].clean_accuracy is None, "it was given up before retraining"
    saved = prune(model, replace(config, minimum_kept=20))
    assert saved.collapse is None
    assert saved.masks["blocks.0.convolution.weight"].sum() == 20


def test_dead_outputs_are_found_by_hand_and_refused(base):
    masks = {"a": torch.tensor([[1, 0], [0, 0]]).bool(), "b": torch.tensor([[1], [0], [0]]).bool()}
    assert dead_output_share(masks) == ("b", pytest.approx(2 / 3))
    result = prune(base, replace(CONFIG, scope="global", sparsity=0.95, step=0.95, largest_dead_share=0.0))
    assert result.collapse is not None
    assert "have no weight left" in result.collapse


def test_a_network_that_was_never_trained_is_refused():
    with pytest.raises(RecipeError, match="train it before it is pruned"):
        prune(SmallCNN(classes=4, widths=(6, 8), pool_after=(0, 1)))


def test_minima_that_do_not_fit_are_refused_at_once(base):
    with pytest.raises(RecipeError, match="lower minimum_kept or the sparsity"):
        prune(base, replace(CONFIG, scope="global", sparsity=0.9, minimum_kept=200))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sparsity": 1.0}, "must be above 0 and below 1"),
        ({"step": 0.0}, "must be above 0 and below 1"),
        ({"of": "final"}, "choose remaining or initial"),
        ({"scope": "local"}, "layer, global, lamp"),
        ({"largest_clean_drop": 2.0}, "lie between 0 and 1"),
        ({"minimum_kept": -1}, "at least 0"),
    ],
)
def test_a_config_that_means_nothing_is_refused(values, message):
    with pytest.raises(RecipeError, match=message):
        IterativeMagnitude(**values)


def test_natural_retraining_is_judged_on_clean_images_alone(base):
    natural = replace(RETRAINING, loss="natural", eps=0.0)
    result = prune(base, replace(CONFIG, training=natural))
    assert result.collapse is None
    assert all(step.robust_accuracy is None and step.clean_accuracy is not None for step in result.steps)


class StoppedError(Exception):
    pass


def prune_and_die(folder):
    def die(epoch, record):
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    prune(trained(), snapshots=Snapshots(folder, "s"), on_epoch=die)


def test_a_killed_run_loses_at_most_an_epoch_and_ends_with_the_same_mask(base, tmp_path):
    """Killed within the second step, and stopped once more after that step was trained and before it was kept."""
    assert ended(forked(prune_and_die, tmp_path)) == -signal.SIGKILL
    snapshots = Snapshots(tmp_path, "s")
    assert len(snapshots.load()[1]["steps"]) == 1
    assert len(snapshots.child("step-1").load()[1]["history"]) == 1, "the first epoch of the second step is there"
    epochs = []

    def stop(epoch, record):
        epochs.append(epoch)
        if epoch == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        prune(base, snapshots=snapshots, on_epoch=stop)
    assert epochs == [0, 1, 2, 3], "what was done is reported again"
    resumed, unbroken = prune(base, snapshots=snapshots), prune(base)
    assert same(resumed.masks, unbroken.masks)
    assert same(resumed.model.state_dict(), unbroken.model.state_dict())
    assert resumed.history == unbroken.history
    assert resumed.steps == unbroken.steps
    again = prune(base, snapshots=snapshots, on_epoch=lambda epoch, _: epochs.append(epoch))
    assert same(again.model.state_dict(), unbroken.model.state_dict()), "a finished run is taken as it is"
    assert epochs[4:] == [0, 1, 2, 3, 4, 5]
