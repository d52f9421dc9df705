"""All pruning methods by their configuration, and what each needs before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

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
from s2ap_train.pruning.prunable import check_achieved
from s2ap_train.pruning.pruned_model import PrunedModel
from s2ap_train.pruning.score_pruning import ScorePruning
from s2ap_train.pruning.scratch_ticket import ScratchTicket
from s2ap_train.pruning.structures import StructureName
from s2ap_train.pruning.twin_rep import TwinRep, prune_twin_rep
from s2ap_train.training import Run, TrainingConfig

PruningMethod = Hydra | Harp | ScratchTicket | Magnitude | IterativeMagnitude | TwinRep | FlyingBird
"""A configuration is a method."""

Prune = Callable[..., PrunedModel]
"""(model, images, labels, validation, settings, *, run) -> the pruned network, as `prune` says."""


@dataclass(frozen=True)
class Method:
    """A pruning method.

    Attributes:
        settings: Its frozen dataclass of hyper-parameters.
        prune: What it does.
        starts_trained: Whether it prunes a trained network; otherwise it begins with random weights.
        needs_tuning: Whether the pruned network is to be fine-tuned.
        trains_like: What of the recipe's training of the dense network takes the place of its own: nothing, the number
            of epochs, or all; a method that begins with random weights is trained as long as that network would be.
    """

    settings: type[PruningMethod]
    prune: Prune
    starts_trained: bool = True
    needs_tuning: bool = True
    trains_like: Literal["itself", "dense epochs", "dense"] = "itself"


def prune_by_magnitude(
    model: nn.Module,
    images: Array,
    labels: Array,  # noqa: ARG001
    validation: tuple[Array, Array],  # noqa: ARG001
    config: Magnitude,
    *,
    run: Run,  # noqa: ARG001
) -> PrunedModel:
    """`magnitude_pruned` with the arguments of every method; nothing is trained."""
    return magnitude_pruned(model, image_shape(images), config)


METHODS: Mapping[str, Method] = {
    "hydra": Method(Hydra, search_masks),
    "harp": Method(Harp, search_masks),
    "scratch-ticket": Method(
        ScratchTicket, search_masks, starts_trained=False, needs_tuning=False, trains_like="dense epochs"
    ),
    "magnitude": Method(Magnitude, prune_by_magnitude),
    "iterative-magnitude": Method(IterativeMagnitude, prune_iteratively, needs_tuning=False),
    "twin-rep": Method(TwinRep, prune_twin_rep, starts_trained=False, needs_tuning=False, trains_like="dense"),
    "flying-bird": Method(FlyingBird, prune_flying_bird, starts_trained=False, needs_tuning=False, trains_like="dense"),
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
        if not _trains_scores(base):
            scored = [name for name in METHODS if _trains_scores(name)]
            raise RecipeError(
                f"base {base!r} trains no scores that S2AP could perturb; choose from {', '.join(scored)}"
            )
        settings |= {"method": base, "s2ap": settings.get("s2ap", {})}
    else:
        settings.pop("s2ap", None)
    if not isinstance(settings.get("method"), str) or settings["method"] not in METHODS:
        return settings
    own = {one.name for one in fields(METHODS[settings["method"]].settings)}
    if "structure" not in own and settings.get("structure", "unstructured") != "unstructured":
        raise RecipeError(
            f"{settings['method']} prunes single weights only, not structure {settings['structure']!r}; "
            'take another method or structure = "unstructured"'
        )
    foreign = {one.name for method in METHODS.values() for one in fields(method.settings)} - own
    return {key: value for key, value in settings.items() if key not in foreign}


def _trains_scores(name: str) -> bool:
    return name in METHODS and issubclass(METHODS[name].settings, ScorePruning)


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
    return METHODS[config.method].starts_trained


def needs_tuning(config: PruningMethod) -> bool:
    """Whether the pruned network is to be fine-tuned."""
    return METHODS[config.method].needs_tuning


def epochs_known(config: PruningMethod) -> int:
    """Epochs that pruning takes if nothing collapses; 0 for a method that trains nothing."""
    training = training_of(config)
    steps = len(config.schedule()) if isinstance(config, IterativeMagnitude) else 1
    return 0 if training is None else steps * training.epochs


def training_of(config: PruningMethod) -> TrainingConfig | None:
    """The training that the method does; None: it trains nothing."""
    return getattr(config, "training", None)


def with_training(config: PruningMethod, training: TrainingConfig) -> PruningMethod:
    """The same method with another training; as it is where it trains nothing."""
    settings: Any = config
    changed: PruningMethod = settings if training_of(config) is None else replace(settings, training=training)
    return changed


def structure_name(config: PruningMethod) -> StructureName:
    """What is pruned: 'unstructured', 'channel' or '2:4'."""
    structure: StructureName = getattr(config, "structure", "unstructured")
    return structure


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
        RecipeError: If the method cannot prune this network so, or removed another share than asked.
    """
    found = METHODS[config.method].prune(model, images, labels, validation, config, run=run)
    check_achieved(found, model, image_shape(images), config)
    return found
