"""Pruning of trained networks: single weights under masks (magnitude, HYDRA, S2AP), and whole channels."""

from s2ap_train.pruning.finetune import Finetune, finetune
from s2ap_train.pruning.hydra import Hydra, prune_hydra
from s2ap_train.pruning.magnitude import prune_magnitude
from s2ap_train.pruning.mask_search import PrunedModel
from s2ap_train.pruning.s2ap import S2AP, prune_s2ap

__all__ = ["S2AP", "Finetune", "Hydra", "PrunedModel", "finetune", "prune_hydra", "prune_magnitude", "prune_s2ap"]
