"""What the closing table of `harden` says of the purifier."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from toy_purifiers import EPS, STRONG, Denoiser, two_halves, upper_half

from s2ap_train.evaluate import AdaptiveBudget
from s2ap_train.evaluate.adaptive import bare_plan
from s2ap_train.ladder import Ladder, Rung, print_ladder, purifier_in_words
from s2ap_train.ladder_rows import attack_row, purified_plan, with_purifier
from s2ap_train.measures.paired import paired_difference
from s2ap_train.purifier import hadamard_bank
from s2ap_train.purifier.variants import purification
from s2ap_train.twin import Twin

RUNG = Rung("undefended", 0.9, 0.5, 0.4, 0.4)


def ladder(before: int | None, after: int = 0) -> Ladder:
    """Twenty images of which the classifier has the first ones right, without the purifier and with it."""
    images = np.arange(20)
    effect = None if before is None else paired_difference(images < before, images < after)
    return Ladder((RUNG,), 20, 0.1, "undefended", effect)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        # of n discordant images all on one side: 2 / 2^n
        (14, 8, "LOWERS the adaptive figure beyond noise, from 70.0% to 40.0% (exact McNemar p = 0.031)"),
        (8, 14, "raises the adaptive figure beyond noise, from 40.0% to 70.0% (exact McNemar p = 0.031)"),
        (13, 8, "changes the adaptive figure by no more than noise, from 65.0% to 40.0% (exact McNemar p = 0.062)"),
        (8, 8, "changes the adaptive figure by no more than noise, from 40.0% to 40.0% (exact McNemar p = 1)"),
    ],
)
def test_what_the_purifier_changes_is_told_with_how_sure_that_is(before: int, after: int, said: str) -> None:
    assert purifier_in_words(ladder(before, after)) == f"in front of this classifier (undefended) it {said}"


def test_the_table_ends_with_the_purifier() -> None:
    for one, said in ((ladder(14, 8), "LOWERS"), (ladder(None), "purifier  off")):
        told = io.StringIO()
        print_ladder(one, Console(file=told, width=120))
        assert said in told.getvalue().splitlines()[-1]


BUDGET = AdaptiveBudget(steps=4, cheap_steps=6, restarts=1, targets=1)


def log_probabilities(images):
    return upper_half(images).log_softmax(1)


def toy_twin(score, config):
    """A classifier of the upper half behind a purifier, as a file's twin."""
    variant = purification("toy", score, hadamard_bank(2, (1, 4, 4), 0), config)
    return Twin(
        purifier=lambda images: (variant.purify(images),),
        clamp_free_purifier=lambda images: (variant.straight_through(images),),
        classifier=lambda images: (log_probabilities(images),),
        members=(),
        test=None,  # a row of the ladder asks no member
        device=torch.device("cpu"),
    )


def toy_rows(score, config, data):
    """The classifier without its purifier, and both rows after the purifier was attacked, too."""

    def view(images, path, members):
        return log_probabilities(images), None

    bare = attack_row("bare", view, view, bare_plan(BUDGET), data, eps=EPS, seed=0, budget=BUDGET)
    return bare, *with_purifier(bare, toy_twin(score, config), data, EPS, 0, BUDGET)


def test_the_row_with_the_purifier_is_attacked_through_it() -> None:
    # what the denoiser reads no attack on the classifier alone touches, see test_purifier_choice
    data = two_halves((0.05, 0.2), lower=0.08)
    _, bare, purified = toy_rows(Denoiser(True), replace(STRONG, radius=0.5), data)
    assert (bare.rung.adaptive_accuracy, purified.rung.pgd_accuracy) == (0.5, 1.0)
    assert (purified.rung.clean_accuracy, purified.rung.adaptive_accuracy) == (1.0, 0.0)


def test_what_breaks_one_of_the_two_rows_is_tried_on_the_other() -> None:
    # the purifier moves by too little to matter, so an image that breaks one row breaks the other
    data, weak = two_halves(0.05), replace(STRONG, radius=0.001)
    alone, bare, purified = toy_rows(Denoiser(True), weak, data)
    assert not (alone.right | bare.right | purified.right).any()
    never_attacked = replace(alone, images=data.images, right=np.ones(len(data), bool))
    bare, purified = with_purifier(never_attacked, toy_twin(Denoiser(True), weak), data, EPS, 0, BUDGET)
    assert not bare.right.any(), "what was found through the purifier breaks the classifier alone"
    assert bare.rung.adaptive_accuracy == bare.rung.label_accuracy == 0.0
    within_no_reach = with_purifier(alone, toy_twin(Denoiser(True), weak), data, 0.0, 0, BUDGET)[1]
    assert not within_no_reach.right.any(), "an attacker without a budget has the images of the classifier's row"


def test_the_purifier_is_attacked_with_every_objective_of_the_bare_row() -> None:
    def aims(plan, path):
        return {(one.objective.name, one.target) for one in plan if one.path == path}

    assert aims(bare_plan(BUDGET), "none") <= aims(purified_plan(BUDGET), "exact")
