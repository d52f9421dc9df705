"""Every network of a recipe, as it will be shipped but untrained: written as ONNX, compared and counted.

What cannot be written, answered image by image or rebuilt by the red team's twin is so by its structure, which its
training does not change. It is therefore known before anything is trained.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from s2ap_defend.errors import DefendError, RecipeError
from s2ap_defend.progress import Reporter
from s2ap_defend.types import Float32
from s2ap_export.hardening.blame import layer_at_fault, node_at_fault
from s2ap_export.hardening.parity import BATCHES, check_stage
from s2ap_export.hardening.purifier_stage import check_purifier
from s2ap_export.hardening.unfit import check_fit
from s2ap_export.tracing.torch_exporter import WRITER
from s2ap_export.tracing.trace import frozen, trace_classifier
from s2ap_train.compute.threads import one_thread
from s2ap_train.models import Classifier, ModelTable, create, fold_batch_norm
from s2ap_train.models.cost import flops
from s2ap_train.models.onnx_network import OnnxNetwork
from s2ap_train.onnx_graphs import torch_stage
from s2ap_train.pruning.shape import shape_after
from s2ap_train.recipe import Recipe, check_networks

__all__ = ["check_network", "check_recipe"]

EXACT = 1e-5
"""Largest difference of log-probabilities in float64, relative to the largest. What is computed when a stage is written
(folded normalisations) is rounded to float32: 2**-24 a layer, and no more than their sum in 150 layers."""
ALONE = 1e-9
"""Largest difference of an image's answer in another batch, float64, relative: its roundings are 2**-53 each."""
SINGLE = 1e-4
"""Both, of networks that can be computed in float32 alone: see `s2ap_export.hardening.parity`."""


def check_recipe(recipe: Recipe, images: Float32, classes: int, reporter: Reporter) -> None:
    """Refuse a recipe one of whose networks cannot be shipped or attacked; each architecture is looked at once.

    Args:
        recipe: Its purifier, its classifiers, and the members of families that have some, without the channels that
            these lose.
        images: A few images of its data, float32 [N, C, H, W].
        classes: Number of classes.
        reporter: Shows each network with its floating point operations.

    Raises:
        RecipeError: With the key of the recipe that names the network.
    """
    channels, height, width = images.shape[1:]
    check_networks(recipe, (channels, height, width), classes)
    entries = _entries(recipe, partial(create, image_shape=(channels, height, width), classes=classes))
    known: dict[str, str] = {}  # architecture -> key
    with one_thread(), reporter.step("networks", len(entries) + 1) as step:
        with _named(f"recipe {recipe.name}: score_model"):
            step.advance(f"score_model: {check_purifier(recipe, images)}")
        for key, make in entries.items():
            with _named(f"recipe {recipe.name}: {key}"):
                network = make()
                architecture = "" if network is None else json.dumps(network.architecture(), sort_keys=True)
                if network is None:
                    note = "its training decides the shape"
                elif architecture in known:
                    note = f"the network of {known[architecture]}"
                else:
                    note = check_network(network, images, tensorrt=recipe.export.tensorrt)
                    known[architecture] = key
            step.advance(f"{key}: {note}")


def check_network(network: Classifier, images: Float32, *, tensorrt: bool = True) -> str:
    """Refuse an untrained network that cannot be shipped or attacked; it is not changed.

    Args:
        network: Its weights are of no meaning.
        images: A few, float32 [N, C, H, W] in [0, 1]; eight are compared in every batch of `BATCHES`.
        tensorrt: Whether what TensorRT does not take is refused, too.

    Returns:
        What it costs, who wrote it as ONNX and whether it answers with the same bits in every batch, for people.

    Raises:
        RecipeError: With what it lacks.
    """
    alive = _alive(network, torch.from_numpy(np.ascontiguousarray(images)))
    module = frozen(alive)
    x = torch.from_numpy(np.ascontiguousarray(images))
    _check_repeatable(module, x)
    with _blamed(module, x):
        stage = trace_classifier(fold_batch_norm(module), alive.image_shape, "network")
    precise, exact = _most_precise(module, x)
    expected = _log_probabilities(precise, exact)
    with _blamed(module, x):
        _check_alone("the network", lambda images: _log_probabilities(precise, images), exact)
    if not alive.without_gradients:
        _check_twin(stage, exact, expected)
    check_fit(stage, wanted=tensorrt)
    same = check_stage("network", stage, lambda images: (_log_probabilities(module, images),), images)
    cost = f"{flops(alive, alive.image_shape) / 1e6:.3g} MFLOPs"
    by = ", written by torch.onnx" if stage.producer_name == WRITER else ""
    return cost + by + ("" if same else ", answers in other batches differ by rounding")


def _entries(recipe: Recipe, new: Callable[..., Classifier]) -> dict[str, Callable[[], Classifier | None]]:
    """By the keys of the recipe, whole networks first: what makes the network there, None where training decides it.

    Of the members of a family that are made of one network, the first stands for all: where they lose other channels,
    their operators are the same.
    """
    entries: dict[str, Callable[[], Classifier | None]] = {"model": partial(new, recipe.model)}
    if recipe.given.robust_model is not None:
        entries["given.robust_model"] = partial(new, recipe.given.robust_model)
    for name, family in recipe.members.items():
        entries |= {f"members.{name}.{key}": partial(new, table) for key, table in family.networks().items()}
    entries["pruning"] = lambda: shape_after(new(recipe.robust_model), recipe.pruning)
    for name, family in recipe.members.items():
        tables: list[ModelTable | None] = []
        for number in range(family.count):
            if family.network(number) not in tables:
                tables.append(family.network(number))
                seed = recipe.member_seed(name, number)
                entries[f"members.{name}[{number}]"] = partial(family.shipped, number, recipe.model, new, seed=seed)
    return entries


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Put the key of a recipe before what is wrong with its network."""
    try:
        yield
    except DefendError as error:
        raise RecipeError(f"{key}: {error}") from error


@contextmanager
def _blamed(module: nn.Module, images: Tensor) -> Iterator[None]:
    """Put the layer or node that reads the batch, where one does, before what is wrong with the network."""
    try:
        yield
    except RecipeError as error:
        x = _uneven(images)
        found = node_at_fault(module, x) if isinstance(module, OnnxNetwork) else layer_at_fault(module, x)
        if not found:
            raise
        raise RecipeError(f"{found}{error}") from error


def _alive(network: Classifier, images: Tensor) -> Classifier:
    """A copy in which no part hides what others compute.

    Normalisations know the statistics of the images, and parameters that begin as one number everywhere (the zeros of a
    last layer, the tiny factors of a residual branch) are moved a little; not those of an ONNX file, whose graph is
    served as it is.
    """
    alive = copy.deepcopy(network).cpu().train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for parameter in () if isinstance(network, OnnxNetwork) else alive.parameters():
            number = parameter.is_floating_point() and parameter.numel()
            if number and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for module in alive.modules():
            if isinstance(module, _BatchNorm) and module.track_running_stats:
                module.reset_running_stats()
                module.momentum = None  # the images' own statistics, not a moving average
        torch.manual_seed(0)  # of dropout
        try:
            answer = alive(images)
        except Exception as error:  # whatever the user's module raises
            raise RecipeError(
                f"the network fails in training mode on {len(images)} images with {type(error).__name__}: {error}"
            ) from error
    if not isinstance(answer, Tensor) or answer.shape != (len(images), network.classes):
        found = f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise RecipeError(
            f"the network answers {found} in training mode, expected logits of shape {(len(images), network.classes)} "
            "as in evaluation mode; switch its other heads off (aux_logits=False in torchvision)"
        )
    return alive.eval()


def _most_precise(module: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """Network and images in float64, or as they are where the network names float32 itself."""
    double = copy.deepcopy(module).double()
    with torch.no_grad():
        try:
            double(x.double())
        except Exception:  # a forward method may do anything
            return module, x
    return double, x.double()


@torch.no_grad()
def _log_probabilities(module: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return module(images.clone()).log_softmax(dim=1)  # it may write over what it is given


@torch.no_grad()
def _check_repeatable(module: nn.Module, x: Tensor) -> None:
    """Refuse a network that answers no finite numbers, or others when it is asked again."""
    first, second = module(x.clone()), module(x.clone())
    if not bool(first.isfinite().all()):
        raise RecipeError(
            f"the network answers numbers that are not finite on {len(x)} images before it is trained, expected "
            "logits; look for a division by zero or a logarithm in its forward method"
        )
    if not torch.equal(first, second):
        raise RecipeError(
            "the network answers the same images differently the second time: it takes random numbers or keeps a state "
            "in evaluation mode; an answer must be the same every time"
        )


def _uneven(images: Tensor) -> Tensor:
    """The images, each darker than the next: a quantisation by the range of a batch is then one by its neighbours."""
    brightness = torch.linspace(0.25, 1, len(images), dtype=images.dtype)
    return images * brightness[:, None, None, None]


def _check_alone(name: str, function: Callable[[Tensor], Tensor], images: Tensor) -> None:
    """Refuse a function of images whose answer to one depends on others."""
    x = _uneven(images)
    apart = torch.cat([function(part) for part in x.tensor_split(np.cumsum(BATCHES).tolist()) if len(part)])
    difference = _relative(apart, function(x))
    allowed = ALONE if x.dtype == torch.float64 else SINGLE
    if not difference <= allowed:
        raise RecipeError(
            f"{name} answers an image differently in another batch, by {difference:.2g} of the largest "
            "log-probability; a verdict may depend on one image only: leave out what reads the batch, such as a mean "
            "over its images, a normalisation by its statistics in evaluation mode, or a quantisation by its range "
            "(DynamicQuantizeLinear)"
        )


def _check_twin(stage: ModelProto, x: Tensor, expected: Tensor) -> None:
    """Refuse a stage that the red team's twin cannot rebuild, or not as the network was, with a gradient."""
    twin = torch_stage(stage, dtype=x.dtype)
    images = x.clone().requires_grad_()
    (found,) = twin(images)
    difference = _relative(found.detach(), expected)
    if not difference <= (EXACT if x.dtype == torch.float64 else SINGLE):
        raise RecipeError(
            f"rebuilt from its ONNX, the network's log-probabilities differ by {difference:.2g} of the largest; this "
            "is a fault of the export, please report it with the network"
        )
    (gradient,) = torch.autograd.grad((found * torch.linspace(-1, 1, found.shape[1], dtype=x.dtype)).sum(), images)
    if not bool(gradient.isfinite().all()):
        raise RecipeError(
            "the gradient of the network with respect to an image is not finite, so that no attack could be trusted; "
            "leave out what has no finite slope there (a square root or a division at zero)"
        )
    _check_alone("its ONNX", lambda part: twin(part)[0].detach(), x)


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())
