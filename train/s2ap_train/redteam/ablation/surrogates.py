"""The attacker's own networks: trained on the same data with other seeds, and never shown the defence."""

from __future__ import annotations

import inspect
from pathlib import Path

from s2ap_defend.progress import Reporter
from s2ap_train.compute.threads import one_thread
from s2ap_train.data import Splits
from s2ap_train.hardening.network import Network
from s2ap_train.hardening.parts import train_dense
from s2ap_train.models import ARCHITECTURES, ModelTable
from s2ap_train.recipe import EnsembleRecipe
from s2ap_train.storage.parts import PartStore
from s2ap_train.training import TrainingConfig

__all__ = ["BASE_WIDTH", "MEMBERS", "surrogate_names", "train_surrogates", "widened"]

BASE_WIDTH = 1.5
"""Channels of the attacker's base, of those of the recipe's network."""
MEMBERS = 3
"""Adversarially trained networks of the attacker."""
_FIRST_SEED = 500_000_000  # beyond the seeds that any family of members takes by itself


def surrogate_names(members: int = MEMBERS) -> tuple[str, ...]:
    """Parts of the attacker's networks: the base, then the others."""
    return "surrogate-base", *(f"surrogate-robust-{number}" for number in range(members))


def train_surrogates(
    recipe: EnsembleRecipe, splits: Splits, work_dir: Path, reporter: Reporter, *, members: int = MEMBERS
) -> tuple[Network, ...]:
    """Train or reload the attacker's networks: a natural base, then adversarially trained ones.

    The base is trained as the recipe's plain network, but wider (`widened`); the others as its adversarial one, from
    fresh weights. All have seeds that no network of the defence has. Each is a part of the work folder,
    "surrogate-base" and "surrogate-robust-N", reused while its settings are the same; a run that was killed goes on
    with the epoch it was in. The caller has locked the folder (`s2ap_train.storage.lock.locked_folder`).

    Args:
        recipe: Data, network, trainings, eps and compute.
        splits: The data; train and validation are used, as by the defence.
        work_dir: Folder of the checkpoints.
        reporter: Shows every part.
        members: Adversarially trained networks.

    Returns:
        The base, then the others; in evaluation mode, on the CPU.

    Raises:
        RecipeError: If a network of the recipe cannot be made or trained.
    """
    store = PartStore(work_dir, reporter)

    def trained(number: int, table: ModelTable, name: str, config: TrainingConfig) -> Network:
        other = {"seed": recipe.seed + _FIRST_SEED + number, "model": table}
        return train_dense(recipe.model_copy(update=other), splits, name, config, store)

    with one_thread():
        own = recipe.robust_model if recipe.from_onnx else recipe.model
        first, *others = surrogate_names(members)
        base = trained(0, widened(own, BASE_WIDTH), first, recipe.plain)
        robust = [trained(number, own, name, recipe.from_fresh_weights) for number, name in enumerate(others, start=1)]
    return base, *robust


def widened(table: ModelTable, factor: float) -> ModelTable:
    """The table of a network whose channels are `factor` times as many.

    A user's network, or one of given `channels`, comes back as it is: the seed alone then tells the networks apart.
    """
    known = {"name": table} if isinstance(table, str) else table
    network = ARCHITECTURES.get(known["name"])
    if network is None or "width" not in inspect.signature(network).parameters or "channels" in known:
        return table
    return {**known, "width": factor * float(known.get("width", 1.0))}
