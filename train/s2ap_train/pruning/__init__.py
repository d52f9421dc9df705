"""Pruning of networks: weights, 2:4 patterns or whole channels, by trained scores, by magnitude, or while training."""

from s2ap_train.pruning.finetune import Tuned, finetune
from s2ap_train.pruning.flying_bird import FlyingBird
from s2ap_train.pruning.harp import Harp
from s2ap_train.pruning.hydra import Hydra
from s2ap_train.pruning.iterative import IterativeMagnitude, prune_iteratively
from s2ap_train.pruning.magnitude import Magnitude, magnitude_pruned, prune_magnitude
from s2ap_train.pruning.mask_search import search_masks
from s2ap_train.pruning.methods import PruningMethod, prune
from s2ap_train.pruning.moving_topology import prune_flying_bird
from s2ap_train.pruning.pruned_model import PrunedModel
from s2ap_train.pruning.s2ap import S2AP
from s2ap_train.pruning.scratch_ticket import ScratchTicket
from s2ap_train.pruning.shape import shape_after
from s2ap_train.pruning.twin_rep import TwinRep, prune_twin_rep

__all__ = [
    "S2AP",
    "FlyingBird",
    "Harp",
    "Hydra",
    "IterativeMagnitude",
    "Magnitude",
    "PrunedModel",
    "PruningMethod",
    "ScratchTicket",
    "Tuned",
    "TwinRep",
    "finetune",
    "magnitude_pruned",
    "prune",
    "prune_flying_bird",
    "prune_iteratively",
    "prune_magnitude",
    "prune_twin_rep",
    "search_masks",
    "shape_after",
]
