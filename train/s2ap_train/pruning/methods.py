"""All pruning methods by their configuration, and what each needs before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_train.attacks.accuracy import Array, image_shape
from s2ap_train.pruning.flying_bird import FlyingBird
from s2ap_train.pruning.harp import Harp
from s2ap_train.pruning.hydra import Hydra
from s2ap_train.pruning.iterative import IterativeMagnitude, prune_iteratively
from s2ap_train.pruning.magnitude import Magnitude, magnitude_pruned
from s2ap_train.pruning.mask_search import search_masks
from s2ap_train.pruning.moving_topology import prune_flying_bird
from s2ap_train.pruning.pruned_model import PrunedModel
from s2ap_train.pruning.score_pruning import ScorePruning
from s2ap_train.pruning.scratch_ticket import ScratchTicket
from s2ap_train.pruning.structures import StructureName
from s2ap_train.pruning.twin_rep import TwinRep, prune_twin_rep
from s2ap_train.training import Run

PruningMethod = Hydra | Harp | ScratchTicket | Magnitude | IterativeMagnitude | TwinRep | FlyingBird
"""A configuration is a method."""

_TRAINS_ITS_OWN_WEIGHTS = (ScratchTicket, FlyingBird, TwinRep)
_NEEDS_NO_TUNING = (ScratchTicket, FlyingBird, TwinRep, IterativeMagnitude)


METHODS: Mapping[str, type] = {
    "hydra": Hydra,
    "harp": Harp,
    "scratch-ticket": ScratchTicket,
    "magnitude": Magnitude,
    "iterative-magnitude": IterativeMagnitude,
    "twin-rep": TwinRep,
    "flying-bird": FlyingBird,
}
"""How a recipe names them; "s2ap" is a base method of scores with S2AP."""
DEFAULT_BASE = "hydra"


def without_foreign_keys(table: object) -> object:
    """The settings of the method that a table names, without those that only other methods have.

    A recipe's table may serve several methods: `method = "s2ap"` reads `base` (a method of scores, by default
    'hydra') and `s2ap`, and every method reads its own keys. Keys that no method has are left for validation to refuse.
    """
    if not isinstance(table, Mapping):
        return table
    settings = dict(table)
    base = str(settings.pop("base", DEFAULT_BASE))
    if settings.get("method") == "s2ap":
        if not issubclass(METHODS.get(base, object), ScorePruning):
            scored = [name for name, method in METHODS.items() if issubclass(method, ScorePruning)]
            raise RecipeError(
                f"base {base!r} trains no scores that S2AP could perturb; choose from {', '.join(scored)}"
            )
        settings |= {"method": base, "s2ap": settings.get("s2ap", {})}
    else:
        settings.pop("s2ap", None)
    if not isinstance(settings.get("method"), str) or settings["method"] not in METHODS:
        return settings
    own = {part.name for part in fields(METHODS[settings["method"]])}
    if "structure" not in own and settings.get("structure", "unstructured") != "unstructured":
        raise RecipeError(
            f"{settings['method']} prunes single weights only, not structure {settings['structure']!r}; "
            'take another method or structure = "unstructured"'
        )
    foreign = {part.name for method in METHODS.values() for part in fields(method)} - own
    return {key: value for key, value in settings.items() if key not in foreign}


def base_name(config: PruningMethod) -> str:
    """What the method is called without S2AP."""
    return config.method


def method_name(config: PruningMethod) -> str:
    """What the method is called: 's2ap' where S2AP is at work."""
    return "s2ap" if uses_s2ap(config) else config.method


def uses_s2ap(config: PruningMethod) -> bool:
    """Whether scores are perturbed."""
    return isinstance(config, ScorePruning) and config.s2ap is not None and config.s2ap.radius != 0


def needs_training(config: PruningMethod) -> bool:
    """Whether the method prunes a trained network; the others begin with random weights."""
    return not isinstance(config, _TRAINS_ITS_OWN_WEIGHTS)


def needs_tuning(config: PruningMethod) -> bool:
    """Whether the pruned network is to be fine-tuned."""
    return not isinstance(config, _NEEDS_NO_TUNING)


def epochs_known(config: PruningMethod) -> int:
    """Epochs that pruning takes if nothing collapses; 0 for a method that trains nothing."""
    if isinstance(config, Magnitude):
        return 0
    steps = len(config.schedule()) if isinstance(config, IterativeMagnitude) else 1
    return steps * config.training.epochs


def structure_name(config: PruningMethod) -> StructureName:
    """What is pruned: 'unstructured', 'channel' or '2:4'."""
    return config.structure if isinstance(config, (ScorePruning, Magnitude, TwinRep)) else "unstructured"


def prune(
    model: nn.Module,
    images: Array,
    labels: Array,
    validation: tuple[Array, Array],
    config: PruningMethod,
    *,
    run: Run,
) -> PrunedModel:
    """Prune a network by the method that the configuration is; the network is not changed.

    Args:
        model: Trained, or only initialised where `needs_training` says no.
        images: Training images, float32 [N, C, H, W] in [0, 1].
        labels: Their labels, int64 [N].
        validation: Images and labels for every choice; never the test set.
        config: Which method, and its hyper-parameters.
        run: The seed is of everything random.

    Raises:
        RecipeError: If the method cannot prune this network so.
    """
    if isinstance(config, Magnitude):
        return magnitude_pruned(model, image_shape(images), config)
    arguments = (model, images, labels, validation)
    if isinstance(config, IterativeMagnitude):
        return prune_iteratively(*arguments, config, run=run)
    if isinstance(config, TwinRep):
        return prune_twin_rep(*arguments, config, run=run)
    if isinstance(config, FlyingBird):
        return prune_flying_bird(*arguments, config, run=run)
    return search_masks(*arguments, config, run=run)
