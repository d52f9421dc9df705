"""Recipes: everything that `harden` does, as one TOML file."""

import difflib
import tomllib
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from s2ap_defend.errors import RecipeError
from s2ap_train.calibrate import Detection
from s2ap_train.data import Splits, load_digits
from s2ap_train.ensemble.l1_norm import L1Norm
from s2ap_train.ensemble.random_channel import RandomChannel
from s2ap_train.pruning.s2ap import S2AP
from s2ap_train.purifier.purify import Purification
from s2ap_train.purifier.score import ScoreTraining
from s2ap_train.training import TrainingConfig

DATA = {"digits": load_digits}


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RobustMembers(_Table):
    """Adversarially trained S2AP members: each is pretrained, pruned and fine-tuned with a seed of its own.

    Attributes:
        count: How many.
        widths: Channel widths, one list a member, repeated when there are fewer lists than members.
        pretraining: Adversarial training before the mask search.
    """

    count: Annotated[int, Field(ge=0)]
    widths: tuple[tuple[int, ...], ...]
    pretraining: TrainingConfig
    s2ap: S2AP
    finetune: TrainingConfig


class RandomChannelMembers(_Table):
    """Naturally trained members with randomly chosen channels, physically removed."""

    count: Annotated[int, Field(ge=0)]
    settings: RandomChannel


class L1NormMembers(_Table):
    """Naturally trained members that keep the channels of the largest filters."""

    count: Annotated[int, Field(ge=0)]
    settings: L1Norm


class Members(_Table):
    """The ensemble: the paper's families and the robust backbone."""

    s2ap: RobustMembers
    random_channel: RandomChannelMembers
    l1_norm: L1NormMembers


class EvaluationSettings(_Table):
    """What the closing table of `harden` measures.

    Attributes:
        samples: Test images.
        budget: Preset of the adaptive attack, 'quick' or 'standard'.
    """

    samples: Annotated[int, Field(ge=10)]
    budget: Literal["quick", "standard"]


class Recipe(_Table):
    """One complete hardening.

    Attributes:
        name: Name in the manifest.
        data: Data set.
        seed: Seed of the split and of everything that is trained.
        eps: Attack budget, l_inf in [0, 1] pixels.
        classifier: Which trained network is defended: the plain, the adversarially trained or the S2AP-pruned one.
        widths: Channel widths of that network.
    """

    name: str
    data: str
    seed: int
    eps: Annotated[float, Field(gt=0, le=1)]
    classifier: Literal["plain", "adversarial", "s2ap"]
    widths: tuple[int, ...]
    plain: TrainingConfig
    adversarial: TrainingConfig
    s2ap: S2AP
    finetune: TrainingConfig
    members: Members
    score_model: ScoreTraining
    purifier: Purification
    detection: Detection
    evaluation: EvaluationSettings

    def load_data(self) -> Splits:
        """Load and split the data of the recipe.

        Raises:
            RecipeError: If there is no such data set.
        """
        if self.data not in DATA:
            raise RecipeError(f"data {self.data!r} is not known; {_nearest(self.data, list(DATA))}")
        return DATA[self.data](self.seed)


def packaged_recipes() -> list[str]:
    """Names of the recipes in the package."""
    folder = resources.files("s2ap_train") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Load a packaged recipe by name or any recipe by the path of its .toml file.

    Args:
        name: 'digits', or a path that ends in .toml.
        overrides: 'key.subkey=value' with a TOML value, applied in order.

    Raises:
        RecipeError: If there is no such recipe or key, or a value cannot work.
    """
    if name.endswith(".toml"):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {name} cannot be read: {error}") from error
    elif name in packaged_recipes():
        text = (resources.files("s2ap_train") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    else:
        hint = _nearest(name, packaged_recipes())
        raise RecipeError(f"recipe {name!r} is neither packaged nor the path of a .toml file; {hint}")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {name} is not TOML: {error}") from error
    for override in overrides:
        _apply(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"recipe {name}: {_explain(error)}") from error


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise RecipeError(f"--set {override!r} has no '='; write --set seed=1")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    *path, last = key.strip().split(".")
    table = data
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {override!r}: {part} is a value, not a table")
    table[last] = parsed


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        return f"key {place} is not known; {_nearest(str(first['loc'][-1]), _keys_at(first['loc'][:-1]))}"
    if first["type"] in {"missing", "missing_argument"}:
        return f"key {place} is missing"
    return f"{place} is {first['input']!r}: {first['msg']}"


def _keys_at(path: tuple[int | str, ...]) -> list[str]:
    kind: Any = Recipe
    for part in path:
        kind = _field_types(kind).get(str(part), kind)
    return list(_field_types(kind))


def _field_types(kind: object) -> dict[str, Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if is_dataclass(kind):
        from typing import get_type_hints

        hints = get_type_hints(kind)
        return {field.name: hints[field.name] for field in fields(kind)}
    return {}


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
