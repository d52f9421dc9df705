"""What the options of `harden` say, as the tables of a recipe: one that is named, or `photos` filled from the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from s2ap_defend.errors import RecipeError
from s2ap_export.commands.own_options import Own

__all__ = ["tables_of"]

_DEFAULT_EPS = 8 / 255


def tables_of(recipe: str | None, own: Own, overrides: tuple[str, ...]) -> dict[str, Any]:
    """The tables of the recipe that is to be hardened, by options that were checked; `--set` comes last.

    Raises:
        RecipeError: If the recipe or the data cannot be read.
    """
    from s2ap_train.recipe.text import apply_override, read_recipe

    if recipe is None:
        tables = _photos(own)
    else:
        tables = read_recipe(recipe, ())
        _change(tables, own)
    for override in overrides:
        apply_override(tables, override)
    return tables


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
        tables["data"] = {**({"source": table} if isinstance(table, str) else table), "root": str(own.data.resolve())}
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
