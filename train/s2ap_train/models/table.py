"""How a recipe and a checkpoint name a network, and how it is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import torch
from pydantic import AfterValidator

from s2ap_defend.errors import RecipeError
from s2ap_train.models import onnx_network, resnet, small_cnn, user_network, vgg, wide_resnet
from s2ap_train.models.channel_groups import channel_groups, remove_channels
from s2ap_train.models.classifier import Classifier, initialise
from s2ap_train.models.onnx_network import OnnxNetwork
from s2ap_train.models.resnet import ResNet18
from s2ap_train.models.small_cnn import SmallCNN
from s2ap_train.models.user_network import UserNetwork
from s2ap_train.models.vgg import VGG16
from s2ap_train.models.wide_resnet import WideResNet

ARCHITECTURES: Mapping[str, Callable[..., Classifier]] = {
    small_cnn.NAME: SmallCNN,
    resnet.NAME: ResNet18,
    vgg.NAME: VGG16,
    wide_resnet.NAME: WideResNet,
    user_network.NAME: UserNetwork,
    onnx_network.NAME: OnnxNetwork,
}
N = TypeVar("N", bound="str | Mapping[str, Any]")
_OF_THE_DATA = ("in_channels", "classes", "image_size")


def build(architecture: Mapping[str, Any], *, seed: int = 0) -> Classifier:
    """The network that `architecture()` described, with fresh weights from `seed`.

    With `channels`, kept channels by group name, it is made whole and then cut to these counts.

    Raises:
        RecipeError: If the name is unknown, the other keys are not the arguments of that network, or it has no such
            channels.
    """
    arguments = dict(architecture)
    name, channels = arguments.pop("name", None), arguments.pop("channels", None)
    name = _checked_name(name)
    try:
        model = ARCHITECTURES[name](**arguments, seed=seed)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"architecture {name!r} cannot be built from {arguments}: {error}") from error
    return model if channels is None else _cut(model, channels, seed)


def create(
    network: str | Mapping[str, Any], image_shape: tuple[int, int, int], classes: int, seed: int = 0
) -> Classifier:
    """A new network for images of this shape.

    Args:
        network: A name of `ARCHITECTURES`, a table with `name` and further arguments such as `width`, or the factory of
            a user's network as "package.module:function".
        image_shape: (C, H, W).
        classes: Number of classes.
        seed: Of the weights.

    Raises:
        RecipeError: As `build`.
    """
    channels, height, width = image_shape
    network = as_table(network)
    data = dict(zip(_OF_THE_DATA, (channels, classes, (height, width)), strict=True))
    _leaves_the_data(network)
    return build({**network, **data}, seed=seed)


def check_table(network: N) -> N:
    """The table itself, of which name and keys are known; values are checked when the network is made.

    Raises:
        RecipeError: If there is no such network, it has no such argument, or the data decides it.
    """
    table = as_table(network)
    name = _checked_name(table.get("name"))
    _leaves_the_data(table)
    known = inspect.signature(ARCHITECTURES[name]).parameters.keys() - {*_OF_THE_DATA, "seed"}
    unknown = sorted(table.keys() - known - {"name", "channels"})
    if unknown:
        has = ", ".join(sorted(known)) or "no arguments"
        raise RecipeError(f"architecture {name!r} has no {', '.join(unknown)}; it has {has}")
    return network


ModelTable = Annotated[str | dict[str, Any], AfterValidator(check_table)]
"""A network: its name, `name` and arguments, or package.module:factory; their values are checked when it is made."""


def as_table(network: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """A network as a table with its `name`."""
    if isinstance(network, str):
        return {"name": user_network.NAME, "factory": network} if ":" in network else {"name": network}
    return network


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise RecipeError(f"unknown architecture {name!r}; choose one of {', '.join(sorted(ARCHITECTURES))}")
    return name


def _leaves_the_data(table: Mapping[str, Any]) -> None:
    given = sorted(table.keys() & set(_OF_THE_DATA))
    if given:
        raise RecipeError(f"the table of the network sets {', '.join(given)}; leave that to the data")


def _cut(model: Classifier, channels: object, seed: int) -> Classifier:
    groups = {group.name: group for group in channel_groups(model, model.image_shape, verify=False)}
    if not isinstance(channels, Mapping) or not channels.keys() <= groups.keys():
        raise RecipeError(f"channels are {channels!r}, expected counts of some of the groups {', '.join(groups)}")
    kept = {}
    for name, count in channels.items():
        size = groups[name].size
        if not isinstance(count, int) or not 1 <= count <= size:
            raise RecipeError(f"{count!r} channels of group {name} cannot be kept, it has {size}")
        kept[name] = torch.arange(size) < count
    smaller = remove_channels(model, tuple(groups.values()), kept).train()
    if not isinstance(smaller, UserNetwork):  # for its own sizes; the weights of users' networks are theirs to draw
        initialise(smaller, seed)
    return smaller
