"""Any torch module as a classifier: made by a function of the user's, named as package.module:function."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_train.models.classifier import Classifier
from s2ap_train.models.logits import Reading, logits_of
from s2ap_train.models.modes import evaluation_mode

NAME = "user"


class UserNetwork(Classifier):
    """A module of the user's, `network`: images [N, C, H, W] in [0, 1] -> logits [N, K].

    The module is taken as it is: it normalises the pixels itself. Where it answers with probabilities, or with logits
    that float32 cannot attack, these are made logits (`models.logits`); labels stay. Rebuilding one imports and calls
    its factory, which runs the user's code; rebuild only checkpoints whose factory you trust.
    """

    def __init__(
        self,
        factory: str,
        in_channels: int = 3,
        classes: int = 10,
        image_size: int = 32,
        *,
        logits: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        """Call the factory and check what it made.

        Args:
            factory: "package.module:function"; the module is searched in the current folder first. The function is
                called with those of the keywords in_channels, classes and image_size that it takes.
            in_channels: Channels C of an image.
            classes: Number of classes K.
            image_size: Height and width of an image, pixels.
            logits: How its outputs become logits, the fields of a `Reading`; None: as found.
            seed: Of torch's global generator while the factory runs; its state is put back afterwards.

        Raises:
            RecipeError: If the factory cannot be found or called, or what it returns does not map images to
                logits or has no parameters.
            ValueError: If a size is below 1.
        """
        super().__init__(in_channels, classes, image_size)
        self.factory = factory
        sizes = {"in_channels": in_channels, "classes": classes, "image_size": image_size}
        function = _factory(factory)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = _made(factory, function, sizes)
        _check_logits(factory, self.network, self.image_shape, classes)
        _check_parameters(factory, self.network)
        self._stripped, found = logits_of(self.network, self.image_shape)
        self.reading = found if logits is None else Reading.of(logits)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K] of images [N, C, H, W] in [0, 1]."""
        return self.reading(self.network(images))

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found about its outputs, as sentences."""
        stripped = "the softmax that the network ends with is left out: its input are the logits"
        return (*([stripped] if self._stripped else []), *self.reading.notes)

    def arguments(self) -> dict[str, Any]:
        """Name and arguments that make this network with all its channels, as JSON values."""
        return {
            "name": NAME,
            "factory": self.factory,
            "in_channels": self.in_channels,
            "classes": self.classes,
            "image_size": self.image_size,
            **({"logits": self.reading.changed} if self.reading.changed else {}),
        }


def _factory(name: str) -> Callable[..., object]:
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name or ":" in function_name:
        raise RecipeError(f"the factory is {name!r}, expected package.module:function, as in mynets.small:make")
    here = str(Path.cwd())
    if here not in sys.path:  # an installed command does not look there by itself
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise RecipeError(
                f"factory {name}: importing {module_name} failed: {error}; install what it needs"
            ) from error
        raise RecipeError(
            f"factory {name}: there is no module {error.name}; run from the folder that holds it, or install it"
        ) from error
    except Exception as error:  # whatever the user's module raises
        raise RecipeError(
            f"factory {name}: importing {module_name} failed with {type(error).__name__}: {error}; correct the module"
        ) from error
    function: object = getattr(module, function_name, None)
    if not callable(function):
        found = "nothing" if function is None else f"a {type(function).__name__}"
        raise RecipeError(
            f"factory {name}: {module_name} holds {found} called {function_name}, expected a function that returns "
            "a torch module"
        )
    return function


def _made(name: str, function: Callable[..., object], sizes: dict[str, int]) -> nn.Module:
    try:
        parameters = inspect.signature(function).parameters.values()
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        named = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        made = function(**{key: value for key, value in sizes.items() if takes_all or key in named})
    except Exception as error:  # whatever the user's function raises
        raise RecipeError(
            f"factory {name} failed with {type(error).__name__}: {error}; it is called with those of in_channels, "
            "classes and image_size that it takes, by keyword"
        ) from error
    if not isinstance(made, nn.Module):
        raise RecipeError(f"factory {name} returned a {type(made).__name__}, expected a torch.nn.Module")
    return made


def _check_logits(name: str, network: nn.Module, image_shape: tuple[int, int, int], classes: int) -> None:
    images = torch.full((2, *image_shape), 0.5)
    try:
        with torch.no_grad(), evaluation_mode(network):
            logits = network(images)
    except Exception as error:  # whatever the user's module raises
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


def _check_parameters(name: str, network: nn.Module) -> None:
    if next(network.parameters(), None) is None:
        raise RecipeError(
            f"the network of factory {name}, a {type(network).__name__}, has no parameters, expected weights to train "
            "and prune; return a module whose layers hold them as parameters"
        )
