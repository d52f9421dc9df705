"""The table of pruning methods is whole: everything that names a method names the same ones."""

from typing import get_args

from s2ap_train.commands.prune.cli import METHODS as OFFERED
from s2ap_train.pruning.methods import METHODS, PruningMethod, needs_training, needs_tuning
from s2ap_train.pruning.score_pruning import ScorePruning


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
