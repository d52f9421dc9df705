"""The shape that a method leaves, known before it is run."""

from __future__ import annotations

from s2ap_train.models import Classifier
from s2ap_train.pruning.finetune import shipped
from s2ap_train.pruning.magnitude import Magnitude, magnitude_pruned
from s2ap_train.pruning.methods import PruningMethod, structure_name
from s2ap_train.pruning.score_pruning import ScorePruning


def shape_after(dense: Classifier, method: PruningMethod) -> Classifier | None:
    """A network of the shape that is left of this one, with weights of no meaning; it is not changed.

    Methods that take the same share of every channel group leave as many channels whichever they choose. None: the
    method learns how many, so that only the run can tell. Masked weights leave the shape as it is.

    Raises:
        RecipeError: If the network has no channels to remove.
    """
    if structure_name(method) != "channel":
        return dense
    if isinstance(method, ScorePruning) and method.same_share:
        method = Magnitude(method.sparsity, structure="channel")
    if not isinstance(method, Magnitude):
        return None
    smaller = shipped(magnitude_pruned(dense, dense.image_shape, method), "channel", dense.image_shape)
    if not isinstance(smaller, Classifier):  # our own bug
        raise TypeError(f"removing channels returned a {type(smaller).__name__}")
    return smaller
