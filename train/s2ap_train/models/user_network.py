"""Any torch module as a classifier: made by a function of the user's, named as package.module:function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_train.models.classifier import Classifier, ImageSize
from s2ap_train.models.logits import Reading, logits_of, reading_of
from s2ap_train.models.modes import device_of, evaluation_mode
from s2ap_train.models.named_object import named_object
from s2ap_train.models.normalisation import Normalisation

NAME = "user"
_TO_ONNX = "torch.onnx.export(module, (images,), 'classifier.onnx', dynamo=False), and give that file with --onnx"
"""What makes a TorchScript module an ONNX file, in messages."""


class UserNetwork(Classifier):
    """A module of the user's, `network`: images [N, C, H, W] in [0, 1] -> logits [N, K].

    The module gets normalised pixels where `mean` and `std` are given, and normalises them itself where not. Where it
    answers with probabilities, or with logits that float32 cannot attack, these are made logits (`models.logits`);
    labels stay. Rebuilding one imports and calls its factory, which runs the user's code; rebuild only checkpoints
    whose factory you trust.
    """

    def __init__(
        self,
        factory: str,
        in_channels: int = 3,
        classes: int = 10,
        image_size: ImageSize = 32,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        logits: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        """Call the factory and check what it made.

        Args:
            factory: "package.module:function"; the module is searched in the current folder first. The function is
                called with those of the keywords in_channels, classes, image_size (one int for square images, else
                (height, width)) and image_shape (C, H, W) that it names, and with height and width if it names both
                (width alone is a factor of channels in many networks). One that takes any keyword gets the first three.
            in_channels: Channels C of an image.
            classes: Number of classes K.
            image_size: Side of a square image, or (height, width), pixels.
            mean: Subtracted from each channel of the pixels in [0, 1], one number a channel or one for all; None: 0.
            std: What the difference is divided by, in the same way; None: 1.
            logits: How its outputs become logits, the fields of a `Reading`; None: as found.
            seed: Of torch's global generator while the factory runs; its state is put back afterwards.

        Raises:
            RecipeError: If the factory cannot be found or called, or what it returns does not map images to
                logits or has no parameters, or the normalisation is none of these channels.
            ValueError: If a size is below 1.
        """
        super().__init__(in_channels, classes, image_size)
        self.factory = factory
        self.normalisation = Normalisation(in_channels, mean, std)
        sizes = {"in_channels": in_channels, "classes": classes, "image_size": self.image_size}
        function = _factory(factory)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = _made(factory, function, sizes, self.image_shape)
        self._frozen = sum(not weight.requires_grad for weight in self.network.parameters())
        self.network.requires_grad_()
        self.reading = Reading()
        _check_logits(factory, self, self.image_shape, classes)
        _check_parameters(factory, self.network)
        self._stripped, found = logits_of(self.network, self.image_shape)
        self._reading_is_given = logits is not None
        self.reading = found if logits is None else Reading.of(logits)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K] of images [N, C, H, W] in [0, 1]."""
        return self.reading(self.unnormalised(self.normalisation(images)))

    def unnormalised(self, images: Tensor) -> Tensor:
        """What the network itself answers [N, K] to images that were normalised already, or not at all."""
        outputs: Tensor = self.network(images)
        return outputs

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found about its outputs, as sentences."""
        stripped = "the softmax or sigmoid that the network ends with is left out: its input are the logits"
        frozen = f"{self._frozen} frozen parameters are trained like the others wherever this network is trained"
        return (
            *([frozen] if self._frozen else []),
            *([stripped] if self._stripped else []),
            *self.reading.notes,
        )

    def read_outputs(self) -> None:
        """See again how outputs become logits, unless it was given: loaded weights may have another scale."""
        if self._reading_is_given:
            return
        images = torch.rand(4, *self.image_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with torch.enable_grad(), evaluation_mode(self.network):
            self.reading = reading_of(self.unnormalised(self.normalisation(images.to(device_of(self.network)))))

    def arguments(self) -> dict[str, Any]:
        """Name and arguments that make this network with all its channels, as JSON values."""
        return {
            "name": NAME,
            "factory": self.factory,
            "in_channels": self.in_channels,
            "classes": self.classes,
            "image_size": self.recorded_size,
            **self.normalisation.arguments(),
            **({"logits": self.reading.changed} if self.reading.changed else {}),
        }


def _factory(name: str) -> Callable[..., object]:
    function = named_object(name, "factory", "a function that returns a torch module")
    if not callable(function):
        raise RecipeError(
            f"factory {name} is a {type(function).__name__}, expected a function that returns a torch module"
        )
    return function


def _made(
    name: str, function: Callable[..., object], sizes: dict[str, Any], image_shape: tuple[int, int, int]
) -> nn.Module:
    try:
        parameters = inspect.signature(function).parameters.values()
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        named = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        given = {key: value for key, value in sizes.items() if takes_all or key in named}
        given |= {"image_shape": image_shape} if "image_shape" in named else {}
        given |= {"height": image_shape[1], "width": image_shape[2]} if {"height", "width"} <= named else {}
        made = function(**given)
    except (Exception, SystemExit) as error:  # whatever the user's function raises
        raise RecipeError(
            f"factory {name} failed with {type(error).__name__}: {error}; it is called with those of in_channels, "
            "classes, image_size, image_shape, height and width that it takes, by keyword"
        ) from error
    if isinstance(made, torch.jit.ScriptModule):
        raise RecipeError(
            f"factory {name} returned a TorchScript module, whose layers cannot be pruned or written; return the "
            f"network that it was made of, or export it, {_TO_ONNX}"
        )
    if not isinstance(made, nn.Module):
        raise RecipeError(f"factory {name} returned a {type(made).__name__}, expected a torch.nn.Module")
    return made


def _check_logits(name: str, network: nn.Module, image_shape: tuple[int, int, int], classes: int) -> None:
    images = torch.full((2, *image_shape), 0.5, requires_grad=True)
    try:
        with torch.enable_grad(), evaluation_mode(network):
            logits = network(images)
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        raise RecipeError(
            f"the network of factory {name} failed on images of shape {tuple(images.shape)} with "
            f"{type(error).__name__}: {error}"
        ) from error
    found = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    if found != (2, classes):
        raise RecipeError(
            f"the network of factory {name} maps images of shape {tuple(images.shape)} to {found}, expected logits of "
            f"shape {(2, classes)}, one column per class"
        )
    if logits.dtype != torch.float32:
        raise RecipeError(
            f"the network of factory {name} answers with {logits.dtype}, expected torch.float32; end its forward "
            "method with .float()"
        )
    if not logits.requires_grad:
        raise RecipeError(
            f"the network of factory {name} passes no gradient: its forward method leaves torch or detaches, as by "
            "no_grad, numpy or argmax; it can be neither trained nor attacked, so return differentiable logits"
        )


def _check_parameters(name: str, network: nn.Module) -> None:
    if next(network.parameters(), None) is None:
        raise RecipeError(
            f"the network of factory {name}, a {type(network).__name__}, has no parameters, expected weights to train "
            "and prune; return a module whose layers hold them as parameters"
        )
