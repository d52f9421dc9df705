"""The table of pruning methods is whole: everything that names a method names the same ones."""

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from s2ap_train.commands.prune.cli import METHODS as OFFERED
from s2ap_train.ensemble.pruned import epochs_of, fit_pruned, manifest_name
from s2ap_train.pruning import methods
from s2ap_train.pruning.magnitude import prune_magnitude
from s2ap_train.pruning.methods import METHODS, Method, PruningMethod, needs_training, needs_tuning
from s2ap_train.pruning.score_pruning import ScorePruning
from s2ap_train.training import Run, TrainingConfig, TrainingData


def test_every_method_is_in_the_table_under_its_own_name_and_offered_by_the_command():
    assert {name: method.settings().method for name, method in METHODS.items()} == {name: name for name in METHODS}
    assert {method.settings for method in METHODS.values()} == set(get_args(PruningMethod))
    assert set(OFFERED) == {"s2ap", *METHODS}


def test_the_command_offers_s2ap_first_then_the_methods_of_scores_that_it_can_be_put_on():
    scored = [name for name, method in METHODS.items() if issubclass(method.settings, ScorePruning)]
    assert OFFERED[: 1 + len(scored)] == ["s2ap", *scored]


def test_methods_that_begin_with_random_weights_train_what_they_prune():
    """Nothing is left to be tuned where nothing was trained before; magnitude pruning alone leaves tuning to others."""
    for method in METHODS.values():
        settings = method.settings()
        assert needs_training(settings) is method.starts_trained
        assert needs_tuning(settings) is method.needs_tuning
        assert method.starts_trained or not method.needs_tuning


@dataclass(frozen=True)
class Half:
    """A method with nothing but a name: it trains nothing and has no structure of its own."""

    method: Literal["half"] = field(default="half", kw_only=True)


def half(model, images, labels, validation, config, *, run):
    assert isinstance(config, Half)
    return prune_magnitude(model, sparsity=0.5)


def test_one_entry_is_all_that_a_new_method_needs(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", {**METHODS, "half": Method(Half, half)})
    images, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 2
    data = TrainingData(images, labels, (images, labels), 2)
    tuning = TrainingConfig(epochs=1, batch_size=10, loss="natural", eps=0.0)
    dense = data.create({"name": "small_cnn", "widths": [4, 4]}, 0)
    fitted = fit_pruned(dense, data, Half(), tuning, pretraining=tuning, run=Run(0))
    assert (fitted.method, epochs_of(Half(), tuning), manifest_name(Half())) == ("half", 1, "half")
    assert 0.45 < fitted.sparsity < 0.55
