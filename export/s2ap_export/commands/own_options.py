"""The options of `harden` that name the user's own things, and which of them contradict each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Resize
from s2ap_export.commands.cost_limit import CostLimit

if TYPE_CHECKING:
    from s2ap_train.recipe.efforts import Effort

__all__ = ["Own", "check_options"]

_WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


@dataclass(frozen=True)
class Own:
    """The user's own things, as far as options name them.

    Attributes:
        data: Folder, zip or .npz file of images, or where the data of a recipe lies.
        model: The network: "package.module:function", or a name of ours.
        weights: File of its weights.
        onnx: An ONNX file in the place of network and weights.
        layout: How its graph takes images.
        robust_model: The network of `robust_weights`, where it is another.
        robust_weights: File of an adversarially trained network's weights.
        robust_mean: As `mean`, of that network.
        robust_std: As `std`, of that network.
        mean: Subtracted from each channel of the pixels in [0, 1].
        std: What the difference is divided by.
        inside: Whether the network is said to normalise by itself.
        classes: File of class names, one a line, in the order of the network's outputs.
        size: (height, width) that images are resized to.
        resize: How they are.
        eps: Attack budget, l_inf in [0, 1] pixels.
        effort: How long it may take.
        answer: Who answers.
        max_cost: What a clean image may cost, as a multiple of the classifier.
        accelerator: Where networks are trained.
        seed: Of split and training.
    """

    data: Path | None
    model: str | None
    weights: Path | None
    onnx: Path | None
    layout: Literal["NCHW", "NHWC"] | None
    robust_model: str | None
    robust_weights: Path | None
    robust_mean: tuple[float, ...] | None
    robust_std: tuple[float, ...] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    inside: bool
    classes: Path | None
    size: tuple[int, int] | None
    resize: Resize | None
    eps: float | None
    effort: Effort | None
    answer: Literal["robust", "mixed", "accurate"] | None
    max_cost: CostLimit | None
    accelerator: str | None
    seed: int | None

    @property
    def files(self) -> tuple[Path, ...]:
        """Those that are read."""
        named = (self.data, self.weights, self.onnx, self.robust_weights, self.classes)
        return tuple(path for path in named if path is not None)


def check_options(recipe: str | None, own: Own) -> None:
    """Refuse options that contradict each other, or name what is not there.

    Raises:
        RecipeError: With the first that do.
    """
    if recipe is None and own.data is None:
        raise RecipeError(
            "nothing to harden: give --data FOLDER with your own images, and --model and --weights with your own "
            "network, or name a RECIPE, such as digits"
        )
    if recipe is not None and own.effort is not None:
        raise RecipeError(
            f"--effort fills the recipe of your own data; recipe {recipe} says by itself how much is done"
        )
    if own.inside and (own.mean is not None or own.std is not None):
        raise RecipeError(
            "--normalised-inside says that the network normalises pixels itself; leave --mean and --std out"
        )
    if own.onnx is not None and (own.model is not None or own.weights is not None):
        raise RecipeError("--onnx is the whole classifier; leave --model and --weights out")
    if own.onnx is not None and recipe is not None:
        raise RecipeError(f"--onnx fills the recipe of your own data; leave recipe {recipe} out")
    if own.layout is not None and own.onnx is None:
        raise RecipeError("--layout is of an ONNX graph; name it with --onnx")
    for option, file in (("--weights", own.weights), ("--onnx", own.onnx), ("--robust-weights", own.robust_weights)):
        if file is not None and not file.exists():
            raise RecipeError(f"{option} {file} does not exist; name a file")
    for option, network in (("--model", own.model), ("--robust-model", own.robust_model)):
        _check_network(option, network)
    is_own = own.onnx is not None or (own.model is not None and ":" in own.model)
    if (own.mean is not None or own.std is not None) and not is_own:
        found = "" if own.model is None else f", and --model {own.model} names none"
        raise RecipeError(
            f"--mean and --std are for a network of your own{found}; name it with --model package.module:function, "
            "such as mynets:build, or --onnx"
        )
    if own.weights is not None and own.model is None and recipe is None:
        raise RecipeError("--weights are of a network; name it with --model package.module:function")
    _check_robust(recipe, own)


def _check_network(option: str, name: str | None) -> None:
    """Refuse a file where a network is named.

    Raises:
        RecipeError: With what the option takes.
    """
    path = Path(name or "")
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        raise RecipeError(f"{option} {name} is an ONNX file; name it with --onnx instead")
    if suffix in _WEIGHTS:
        raise RecipeError(
            f"{option} {name} is a file of weights; {option} names the function that returns the network, as "
            "package.module:function, and the file goes to --weights, or to --onnx as an ONNX file"
        )
    if suffix == ".py":
        raise RecipeError(
            f"{option} {name} names a file; name the module and its function that returns the network, such as "
            f"{path.stem}:build, from the folder that holds it"
        )


def _check_robust(recipe: str | None, own: Own) -> None:
    """The same of what is said about an adversarially trained network."""
    feed = own.robust_mean is not None or own.robust_std is not None
    if own.robust_weights is None:
        if own.robust_model is not None or feed:
            name = "--robust-model" if own.robust_model is not None else "--robust-mean"
            raise RecipeError(f"{name} belongs to the network of --robust-weights, which is missing")
        return
    network = own.robust_model or own.model
    if network is None and (recipe is None or own.onnx is not None):
        raise RecipeError("--robust-weights are of a network; name it with --robust-model package.module:function")
    if feed and (network is None or ":" not in network):
        raise RecipeError(
            "--robust-mean and --robust-std are for a network of your own; name it with --robust-model "
            "package.module:function"
        )
