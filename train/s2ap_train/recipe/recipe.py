"""Recipes: everything that `harden` does, as one TOML file."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self, TypeVar
from zlib import crc32

from pydantic import BaseModel, Field, ValidationError, model_validator

from s2ap_defend.errors import RecipeError
from s2ap_train.calibration import Detection
from s2ap_train.compute import ComputeSettings
from s2ap_train.data import DataSettings, Splits, load_data
from s2ap_train.ensemble import Family, Pruning
from s2ap_train.models import ModelTable, onnx_network
from s2ap_train.models.table import as_table
from s2ap_train.pruning.methods import METHODS, training_of, with_training
from s2ap_train.purifier.purify import Purification
from s2ap_train.purifier.score import ScoreTraining
from s2ap_train.recipe.purifier_grid import ChoiceSettings
from s2ap_train.recipe.tables import (
    DecisionGrid,
    DecisionRecipe,
    EvaluationSettings,
    ExportSettings,
    GivenNetworks,
    MeasureSettings,
)
from s2ap_train.recipe.text import explain, read_recipe
from s2ap_train.settings import Table
from s2ap_train.training import TrainingConfig

R = TypeVar("R", bound=BaseModel)
_FOR_ENSEMBLES = ("plain", "members", "detection")
_ALL_FOR_ENSEMBLES = (*_FOR_ENSEMBLES, "given")
_FOR_HARDENING = ("classifier", "score_model", "purifier", "evaluation")
_ALL_FOR_HARDENING = (*_FOR_HARDENING, "choice", "decision", "decision_choice", "export", "jury_training")


class _DataRecipe(Table):
    """What every recipe begins with.

    Attributes:
        name: Name in manifests and metrics.
        data: Data set.
        seed: Seed of the split and of everything that is trained.
    """

    name: str
    data: DataSettings
    seed: int

    def load_data(self, on_progress: Callable[[int, int], None] | None = None) -> Splits:
        """Load and split the data of the recipe.

        Raises:
            RecipeError: If the data set is not there, or is not as it should be.
        """
        return load_data(self.data, self.seed, on_progress)


class ScoreRecipe(_DataRecipe):
    """The score model of a purifier and nothing else.

    Attributes:
        compute: Where it is trained, and in which precision.
        score_model: Its network and training.
    """

    compute: ComputeSettings = ComputeSettings()
    score_model: ScoreTraining


class PruningRecipe(_DataRecipe):
    """One pruned robust classifier: data, network, adversarial training, pruning, fine-tuning.

    Attributes:
        eps: Attack budget, l_inf in [0, 1] pixels, of everything that is measured.
        model: The network: `name` and its arguments.
        compute: Where it is trained, and in which precision.
        adversarial: Training of the dense network.
        pruning: Method and its hyper-parameters.
        finetune: Training of what is left.
        measures: What `prune` measures.
    """

    eps: Annotated[float, Field(gt=0, le=1)]
    model: ModelTable
    compute: ComputeSettings = ComputeSettings()
    adversarial: TrainingConfig
    pruning: Pruning
    finetune: TrainingConfig
    measures: MeasureSettings = MeasureSettings()

    @model_validator(mode="after")
    def _train_as_long(self) -> Self:
        """Methods that begin with random weights are trained as the dense network would be, not as a mask search is."""
        own, like = training_of(self.pruning), METHODS[self.pruning.method].trains_like
        if own is not None and like != "itself":
            training = self.adversarial if like == "dense" else replace(own, epochs=self.adversarial.epochs)
            object.__setattr__(self, "pruning", with_training(self.pruning, training))
        return self


class EnsembleRecipe(PruningRecipe):
    """A plain network, families of members, and the sequential test over them.

    Attributes:
        plain: Natural training of the plain network, of which `model` is the architecture.
        members: The families by a name of their own; members are flattened in this order.
        detection: The sequential test.
        given: Trained networks that the user brings.
    """

    plain: TrainingConfig
    members: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], Family]
    detection: Detection
    given: GivenNetworks = GivenNetworks()

    @model_validator(mode="after")
    def _trains_what_can_be(self) -> Self:
        """The graph of an ONNX file is served and attacked as it is, and nothing else."""
        if self.from_onnx:
            if self.given.robust_model is None:
                raise RecipeError(
                    "model is an ONNX file, which is not trained; given.robust_model names the network that is"
                )
            based = [name for name, family in self.members.items() if family.count and family.starts_from_base]
            if based:
                raise RecipeError(f"members.{based[0]} start from the model, an ONNX file; take another family")
        return self

    @property
    def from_onnx(self) -> bool:
        """Whether the model is an ONNX file."""
        return as_table(self.model).get("name") == onnx_network.NAME

    @property
    def robust_model(self) -> ModelTable:
        """The network that is trained adversarially and pruned."""
        return self.model if self.given.robust_model is None else self.given.robust_model

    @property
    def from_fresh_weights(self) -> TrainingConfig:
        """The adversarial training of networks that start from fresh weights."""
        return self.adversarial if self.given.fresh is None else self.given.fresh

    def member_seed(self, family: str, number: int) -> int:
        """Seed of a member: the recipe's, and the family's first one, which its name decides where it is not given.

        So neither the order of the families nor the counts of others change what a member is.
        """
        first = self.members[family].first_seed
        return self.seed + number + (first if first is not None else 1000 + 1000 * (crc32(family.encode()) % 100_000))


class EvaluationRecipe(_DataRecipe):
    """The evaluation of a file that exists, and nothing else.

    Attributes:
        eps: Attack budget, l_inf in [0, 1] pixels.
        evaluation: What is measured.
    """

    eps: Annotated[float, Field(gt=0, le=1)]
    evaluation: EvaluationSettings


class Recipe(EnsembleRecipe):
    """One complete hardening.

    Attributes:
        compute: Where each part is trained, by default on the CPU; calibration, export and attacks stay there.
        classifier: Which trained network is defended: the plain, the adversarially trained or the pruned one.
        jury_training: Training of the jurors of all families together, behind their own: each learns from images that
            fool the mean probability of all. None leaves them as they are.
        score_model: Training of the purifier's score model.
        purifier: The purification.
        decision: Who answers.
        decision_choice: Which decisions are compared under attack.
        evaluation: The closing table.
        choice: What else is tried in the purifier's place, on validation images; None: a small grid around it.
        export: How the file is written.
    """

    compute: ComputeSettings = ComputeSettings("cpu", channels_last=False)
    classifier: Literal["plain", "adversarial", "pruned"]
    jury_training: TrainingConfig | None = None
    score_model: ScoreTraining
    purifier: Purification
    decision: DecisionRecipe = DecisionRecipe()
    decision_choice: DecisionGrid = DecisionGrid()
    evaluation: EvaluationSettings
    choice: ChoiceSettings | None = None
    export: ExportSettings = ExportSettings()


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe for `harden`: a packaged one by name or any by the path of its .toml file.

    Args:
        name: 'digits', or a path that ends in .toml.
        overrides: 'key.subkey=value' with a TOML value, applied in order.

    Raises:
        RecipeError: If there is no such recipe or key, a value cannot work, or the recipe is not for hardening.
    """
    return hardening_recipe(read_recipe(name, overrides), name)


def hardening_recipe(data: dict[str, Any], name: str) -> Recipe:
    """A recipe for `harden` from its tables.

    Args:
        data: As a .toml file holds them.
        name: For messages.

    Raises:
        RecipeError: If a key or value cannot work, or the recipe is not for hardening.
    """
    if not any(key in data for key in _FOR_HARDENING):
        kind = "ensembles and pruning" if any(key in data for key in _FOR_ENSEMBLES) else "pruning"
        raise RecipeError(
            f"recipe {name} is for {kind}, it has no {', '.join(_FOR_HARDENING[:-1])} or {_FOR_HARDENING[-1]}; "
            "use it with s2ap-defend prune"
        )
    return _validated(Recipe, name, data)


def load_ensemble_recipe(name: str, overrides: Sequence[str] = ()) -> EnsembleRecipe:
    """Load a recipe for its plain network and members, without what it holds for `harden`.

    Arguments as in `load_recipe`.

    Raises:
        RecipeError: If there is no such recipe or key, a value cannot work, or the recipe has no members.
    """
    data = read_recipe(name, overrides)
    missing = [key for key in _FOR_ENSEMBLES if key not in data]
    if len(missing) == len(_FOR_ENSEMBLES):
        raise RecipeError(
            f"recipe {name} is for pruning, it has no {', '.join(missing[:-1])} or {missing[-1]}; "
            "use it with s2ap-defend prune"
        )
    return _validated(EnsembleRecipe, name, _without(_ALL_FOR_HARDENING, Recipe, name, data))


def load_score_recipe(name: str, overrides: Sequence[str] = ()) -> ScoreRecipe:
    """Load a recipe for its score model, without what it holds for others. Arguments as in `load_recipe`.

    Raises:
        RecipeError: If there is no such recipe or key, a value cannot work, or the recipe has no score model.
    """
    data = read_recipe(name, overrides)
    if "score_model" not in data:
        raise RecipeError(f"recipe {name} has no score_model; use one that hardens, such as 'digits', or add the table")
    others = tuple(key for key in data if key not in ScoreRecipe.model_fields)
    return _validated(ScoreRecipe, name, _without(others, Recipe, name, data))


def load_pruning_recipe(name: str, overrides: Sequence[str] = ()) -> PruningRecipe:
    """Load a recipe for `prune`, without what it holds for others. Arguments and errors as in `load_recipe`."""
    data = _without(_ALL_FOR_HARDENING, Recipe, name, read_recipe(name, overrides))
    return _validated(PruningRecipe, name, _without(_ALL_FOR_ENSEMBLES, EnsembleRecipe, name, data))


def evaluation_recipe(tables: dict[str, Any]) -> EvaluationRecipe:
    """The recipe of an evaluation from its tables, such as those of a manifest.

    Raises:
        RecipeError: If a value cannot work.
    """
    return _validated(EvaluationRecipe, tables["name"], tables)


def _without(keys: tuple[str, ...], kind: type[BaseModel], name: str, data: dict[str, Any]) -> dict[str, Any]:
    """The tables without these keys; where one is there, all is validated: a misspelt key is refused for everybody."""
    if not any(key in data for key in keys):
        return data
    _validated(kind, name, data)
    return {key: value for key, value in data.items() if key not in keys}


def _validated(kind: type[R], name: str, data: dict[str, Any]) -> R:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"recipe {name}: {explain(error, kind)}") from error
    except RecipeError as error:  # from several tables together, so of none alone
        raise RecipeError(f"recipe {name}: {error}") from error
