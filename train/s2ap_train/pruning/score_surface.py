"""The loss of a pruned network as a function of its scores: what sharpness is measured on."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from s2ap_train.pruning.pruned_model import PrunedModel
from s2ap_train.pruning.scores import straight_through
from s2ap_train.pruning.sharpness import ScoreFunction
from s2ap_train.pruning.structures import Structure


def score_surface(pruned: PrunedModel, structure: Structure, attacked: Tensor, labels: Tensor) -> ScoreFunction:
    """Cross-entropy on fixed attacked images, in evaluation mode, by scores; layers keep as many as their masks do.

    Args:
        pruned: With the network that was searched.
        structure: Of its masks.
        attacked: Images [N, C, H, W].
        labels: Labels [N].

    Raises:
        ValueError: If the pruning left no network with all its weights.
    """
    if pruned.searched is None:
        raise ValueError("this method prunes while it trains: there is no network with all its weights to look around")
    model: nn.Module = pruned.searched.eval().requires_grad_(False)
    parameters = dict(model.named_parameters())

    def loss(scores: Mapping[str, Tensor]) -> Tensor:
        masks = {name: structure.cut_like(s.detach(), pruned.masks[name]) for name, s in scores.items()}
        values = {name: straight_through(s, masks[name]) for name, s in scores.items()}
        logits: Tensor = functional_call(model, structure.effective(parameters, values), (attacked,))
        return cross_entropy(logits, labels)

    return loss
