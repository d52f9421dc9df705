"""What the options of `harden` say, as the tables of a recipe: one that is named, or `photos` filled from the data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Resize
from s2ap_export.commands.cost_limit import CostLimit

if TYPE_CHECKING:
    from s2ap_train.recipe.efforts import Effort

__all__ = ["Own", "tables_of"]

_DEFAULT_EPS = 8 / 255


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


def tables_of(recipe: str | None, own: Own, overrides: tuple[str, ...]) -> dict[str, Any]:
    """The tables of the recipe that is to be hardened; `--set` comes last.

    Raises:
        RecipeError: If neither a recipe nor data are named, options contradict each other, or the data cannot be read.
    """
    from s2ap_train.recipe.text import apply_override, read_recipe

    _check(recipe, own)
    if recipe is None:
        tables = _photos(own)
    else:
        tables = read_recipe(recipe, ())
        _change(tables, own)
    for override in overrides:
        apply_override(tables, override)
    return tables


def _check(recipe: str | None, own: Own) -> None:
    """Refuse options that contradict each other.

    Raises:
        RecipeError: With the first two that do.
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
    is_own = own.onnx is not None or (own.model is not None and ":" in own.model)
    if (own.mean is not None or own.std is not None) and not is_own:
        raise RecipeError(
            "--mean and --std are for a network of your own; name it with --model package.module:function or --onnx"
        )
    if own.weights is not None and own.model is None and recipe is None:
        raise RecipeError("--weights are of a network; name it with --model package.module:function")
    _check_robust(recipe, own)


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


def _photos(own: Own) -> dict[str, Any]:
    from s2ap_train.data import DataSettings, data_facts
    from s2ap_train.models import create
    from s2ap_train.models.cost import flops
    from s2ap_train.models.onnx_network import OnnxNetwork
    from s2ap_train.recipe.photos import default_network, photos_tables

    data = _data(own)
    facts = data_facts(DataSettings.model_validate(data))
    model = _classifier(own) or default_network(facts)
    given = _given(own, photos=True)
    if own.onnx is not None and "robust_model" not in given:
        given["robust_model"] = default_network(facts)

    network, robust = (
        create(table, facts.image_shape, len(facts.classes)) for table in (model, given.get("robust_model", model))
    )
    tables = photos_tables(
        facts,
        data=data,
        model=model,
        flops=flops(network, facts.image_shape),
        trained_flops=flops(robust, facts.image_shape),
        effort=own.effort or "standard",
        eps=_DEFAULT_EPS if own.eps is None else own.eps,
        answer=own.answer or "mixed",
        seed=own.seed or 0,
        given=given,
    )
    if isinstance(network, OnnxNetwork) and network.refused_by_tensorrt:
        tables["export"] = {"tensorrt": False}
    if own.accelerator is not None:
        tables["compute"] = {"accelerator": own.accelerator}
    if own.max_cost is not None:
        tables["decision"] |= own.max_cost.keys
    return tables


def _data(own: Own) -> dict[str, Any]:
    path = own.data
    if path is None:  # our own bug: it was checked
        raise ValueError("no data")
    table: dict[str, Any] = {
        "source": "npz" if path.suffix.lower() == ".npz" else "folder",
        "root": str(path.resolve()),
    }
    return table | _changes_of_data(own)


def _changes_of_data(own: Own) -> dict[str, Any]:
    """What options say of the data besides where they lie."""
    table: dict[str, Any] = {}
    if own.size is not None:
        height, width = own.size
        table["image_size"] = height if height == width else [height, width]
    if own.resize is not None:
        table["resize"] = own.resize
    if own.classes is not None:
        table["classes"] = _names(own.classes)
    return table


def _names(path: Path) -> list[str]:
    """Class names of a file, one a line.

    Raises:
        RecipeError: If it cannot be read or names nothing.
    """
    from s2ap_train.recipe.text import read_text

    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"--classes {path} cannot be read: {error}; give a text file in UTF-8 with one name a line"
        ) from error
    names = [line.strip() for line in lines if line.strip()]
    if len(names) < 2:
        raise RecipeError(
            f"--classes {path} has {len(names)} lines that are not empty, expected a name a line, two or more"
        )
    return names


def _classifier(own: Own) -> str | dict[str, Any] | None:
    """The table of the classifier that options name; None: none is named."""
    if own.onnx is None:
        return None if own.model is None else _network(own.model, own)
    table: dict[str, Any] = {"name": "onnx", "file": str(own.onnx.resolve())}
    if own.layout is not None:
        table["layout"] = own.layout
    return table | _normalisation(own)


def _normalisation(own: Own) -> dict[str, Any]:
    return _listed(mean=own.mean, std=own.std)


def _listed(**given: tuple[float, ...] | None) -> dict[str, Any]:
    return {name: list(values) for name, values in given.items() if values is not None}


def _network(name: str, own: Own) -> dict[str, Any]:
    return _table(name, _normalisation(own))


def _table(name: str, normalisation: dict[str, Any]) -> dict[str, Any]:
    return {"name": "user", "factory": name} | normalisation if ":" in name else {"name": name}


def _given(own: Own, *, photos: bool) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if own.weights is not None:
        given["classifier"] = str(own.weights.resolve())
        if photos and own.robust_weights is None:
            given["start"] = "plain"
    if own.robust_weights is not None:
        given["robust"] = str(own.robust_weights.resolve())
        feed = _listed(mean=own.robust_mean, std=own.robust_std)
        if (network := own.robust_model or (own.model if feed else None)) is not None:
            given["robust_model"] = _table(network, feed)
    return given


def _change(tables: dict[str, Any], own: Own) -> None:
    """Put what options say into a named recipe."""
    if own.data is not None:
        table = tables.get("data", {})
        tables["data"] = {**({"source": table} if isinstance(table, str) else table), "root": str(own.data)}
    if changes := _changes_of_data(own):
        tables["data"] = {**tables["data"], **changes}
    if own.model is not None:
        tables["model"] = _network(own.model, own)
    given = _given(own, photos=False)
    if given:
        tables["given"] = {**tables.get("given", {}), **given}
        tables.setdefault("classifier", "plain")
    decision: dict[str, object] = {} if own.answer is None else {"answer": own.answer}
    decision |= {} if own.max_cost is None else own.max_cost.keys
    if decision:
        tables["decision"] = {**tables.get("decision", {}), **decision}
    if own.accelerator is not None:
        tables["compute"] = {**tables.get("compute", {}), "accelerator": own.accelerator}
    for key, value in (("eps", own.eps), ("seed", own.seed)):
        if value is not None:
            tables[key] = value
