"""The digits recipe with networks too small and short to defend anything, and its parts, which several tests share."""

import os
from pathlib import Path

import pytest

from s2ap_train.hardening.train import train_components
from s2ap_train.recipe import load_recipe
from s2ap_train.storage.lock import locked
from s2ap_train.storage.parts import silent_reporter

SMALL = {
    "model.widths": "[4, 4, 8]",
    "plain.epochs": 2,
    "adversarial.epochs": 2,
    "pruning.training.epochs": 2,
    "finetune.epochs": 1,
    "members.robust.count": 2,
    "members.robust.models": '[{name = "small_cnn", widths = [4, 4, 8]}]',
    "members.robust.pretraining.epochs": 1,
    "members.robust.pruning.training.epochs": 2,
    "members.robust.finetune.epochs": 1,
    "members.random_channel.count": 2,
    "members.random_channel.settings.training.epochs": 1,
    "members.fresh_channel.count": 0,
    "members.lottery_ticket.count": 0,
    "members.l1_norm.count": 1,
    "members.l1_norm.settings.training.epochs": 1,
    "score_model.epochs": 1,
    "score_model.width": 8,
    "purifier.steps": 1,
    "purifier.mode": '"j_free"',
    "decision_choice.samples": 10,
    "decision_choice.steps": 1,
    "evaluation.samples": 10,
    "evaluation.attacks": '"fgsm,pgd,apgd-ce,unrolled-pgd"',
    "choice.samples": 12,
    "choice.steps": 2,
    "choice.settings": "[]",
}
OVERRIDES = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
"""Options of `harden`."""


@pytest.fixture(scope="session")
def small_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of this recipe, trained by the first test process that asks; copy it."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "small-parts"
    recipe = load_recipe("digits", OVERRIDES[1::2])
    with locked(folder.with_suffix(".lock"), wait=True):
        train_components(recipe, recipe.load_data(), folder, silent_reporter(), workers=1)
    return folder
