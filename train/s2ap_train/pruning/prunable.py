"""Whether a network can be pruned as asked, known before anything is trained; and whether it was."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_train.models.channel_groups import channel_groups, channel_report, removable, remove_channels
from s2ap_train.models.cost import flops
from s2ap_train.models.weights import prunable_weights
from s2ap_train.pruning.flying_bird import FlyingBird
from s2ap_train.pruning.harp import Harp
from s2ap_train.pruning.masks import sparsity
from s2ap_train.pruning.pruned_model import PrunedModel
from s2ap_train.pruning.structures import Channels, Structure, TwoFour, Unstructured
from s2ap_train.pruning.twin_rep import TwinRep, factorised
from s2ap_train.pruning.two_four import is_two_four, two_four_weights

ImageShape = tuple[int, int, int]
_NAMED = 3  # in a message
_MUCH = 0.1  # of all numbers


def check_prunable(model: nn.Module, image_shape: ImageShape, method: object) -> tuple[str, ...]:
    """Refuse a network that a method cannot prune, and say of any other what pruning leaves as it is.

    Args:
        model: The network, trained or not; it is not changed.
        image_shape: (C, H, W).
        method: A pruning method's settings.

    Returns:
        Sentences, for whoever starts a run.

    Raises:
        RecipeError: That names parameters or layers and says what to use instead.
    """
    weights = prunable_weights(model)
    if not weights:
        bare = [f"{name} {tuple(parameter.shape)}" for name, parameter in model.named_parameters()]
        raise RecipeError(
            f"the weights of this {type(model).__name__} are in no layer that can be pruned ({_listed(bare)}); hold "
            "them in nn.Linear, nn.Conv2d, nn.ConvTranspose2d or nn.MultiheadAttention"
        )
    if isinstance(method, TwinRep):
        factorised(model, method.product, method.start, seed=0)  # refuses weights that two layers share
    notes = _bare(model, weights)
    named = getattr(method, "structure", "unstructured")
    if named == "channel":
        report = channel_report(model, image_shape)
        groups = removable(report, model)
        structure: Structure = Channels(groups)
        sizes = {group.name: group.size for group in groups}
        notes += _whole(report.whole)
    elif named == "2:4":
        structure, patterned = TwoFour(), two_four_weights(model)
        sizes = {name: weight.numel() for name, weight in patterned.items()}
        dense = [name for name in weights if name not in patterned]
        notes += [f"inputs are no multiple of 4, so these stay dense: {_listed(dense)}"] if dense else []
    else:
        structure, sizes = Unstructured(), {name: weight.numel() for name, weight in weights.items()}
    asked = float(getattr(method, "sparsity", 0.0))
    if isinstance(method, Harp):
        _check_reachable(structure, model, image_shape, method, sizes)
    elif asked and int(asked * max(sizes.values())) == 0:
        raise RecipeError(
            f"sparsity {asked:g} would remove nothing: the largest of {len(sizes)} layers or groups has "
            f"{max(sizes.values())} of what is pruned; raise the sparsity"
        )
    return tuple(notes)


def check_achieved(found: PrunedModel, model: nn.Module, image_shape: ImageShape, method: object) -> None:
    """Refuse a result of which less, or more, was removed than asked, beyond rounding.

    A pruning that collapsed ends where it was last good, and is not judged.

    Args:
        found: The result.
        model: What was pruned.
        image_shape: (C, H, W).
        method: The pruning method's settings.

    Raises:
        RecipeError: With what was asked and what was found.
    """
    asked = float(getattr(method, "sparsity", 0.0))
    if found.collapse is not None or not asked:
        return
    channels = getattr(method, "structure", "unstructured") == "channel"
    removed, what = sparsity(found.masks) if found.masks else 0.0, "channels" if channels else "weights"
    total = sum(mask.numel() for mask in found.masks.values())
    slack = len(found.masks) * max(1, getattr(method, "minimum_kept", 1)) / max(1, total)
    right = removed > 0
    if getattr(method, "structure", "unstructured") == "2:4":
        right &= all(is_two_four(mask) for mask in found.masks.values())
    if isinstance(method, Harp):
        kept = {name: mask.float().mean().cpu() for name, mask in found.masks.items()}
        groups = channel_groups(model, image_shape, verify=False) if channels else ()
        structure: Structure = Channels(groups) if channels else Unstructured()
        removed = 1 - float(structure.cost(model, image_shape, method.target).rate(kept))
        right, what = removed >= asked - slack, method.target
    elif not (isinstance(method, FlyingBird) and method.plus):  # which chooses its own
        right &= abs(removed - asked) <= slack
    if not right:
        raise RecipeError(
            f"pruning removed {removed:.2%} of the {what}, {asked:.2%} was asked for; take another method or structure"
        )
    if channels:
        _check_removed_channels(found, image_shape)
    else:
        _check_zeros(found)


def _check_reachable(
    structure: Structure, model: nn.Module, image_shape: ImageShape, method: Harp, sizes: Mapping[str, int]
) -> None:
    """Refuse a target that HARP misses even with every quota at its least."""
    least = method.quotas.least * (1 - method.sparsity)
    shares = {name: torch.tensor(max(least, 1 / size)) for name, size in sizes.items()}
    reachable = 1 - float(structure.cost(model, image_shape, method.target).rate(shares))
    if reachable < method.sparsity:
        raise RecipeError(
            f"sparsity {method.sparsity:g} of the {method.target} cannot be reached: at most {reachable:.3f} of them "
            "are in what can be removed; lower the sparsity, or take an unstructured mask"
        )


def _check_removed_channels(found: PrunedModel, image_shape: ImageShape) -> None:
    groups = channel_groups(found.model, image_shape, verify=False)
    before = flops(found.model, image_shape)
    after = flops(remove_channels(found.model, groups, found.masks), image_shape)
    if after >= before:
        raise RecipeError(f"without its closed channels the network needs {after:,} FLOPs, with them {before:,}")


def _check_zeros(found: PrunedModel) -> None:
    weights = prunable_weights(found.model)
    nonzero = [name for name, mask in found.masks.items() if _any(weights[name], ~mask)]
    if nonzero:
        raise RecipeError(f"{_listed(nonzero)} are not 0 where they were pruned; prune again")


def _any(weight: Tensor, where: Tensor) -> bool:
    return bool(weight.detach()[where.to(weight.device)].any())


def _bare(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """What lies in matrices of no layer, if it is much."""
    bare = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if name not in weights and sum(size > 1 for size in parameter.shape) > 1
    }
    total = sum(parameter.numel() for parameter in model.parameters())
    if sum(bare.values()) < _MUCH * total:
        return []
    share = sum(bare.values()) / total
    return [f"{share:.0%} of the numbers are parameters that no layer holds, they stay as they are: {_listed([*bare])}"]


def _whole(reasons: Mapping[str, str]) -> list[str]:
    """Layers that keep their channels, by why."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    said = [f"all channels stay in {_listed(names)}: {reason}" for reason, names in by_reason.items()]
    further = sum(len(names) for names in list(by_reason.values())[_NAMED:])
    return said[:_NAMED] + ([f"all channels stay in {further} further layers, for reasons alike"] if further else [])


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
