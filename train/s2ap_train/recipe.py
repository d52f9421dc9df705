"""Recipes: everything that `harden` does, as one TOML file."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from s2ap_defend.errors import RecipeError
from s2ap_train.calibrate import Detection
from s2ap_train.compute import ComputeSettings
from s2ap_train.data import DataSettings, Splits, load_data
from s2ap_train.ensemble import ChannelPruning
from s2ap_train.pruning import FlyingBird, ScratchTicket, TwinRep
from s2ap_train.pruning.methods import PruningMethod, without_foreign_keys
from s2ap_train.purifier.purify import Purification
from s2ap_train.purifier.score import ScoreTraining
from s2ap_train.recipe_text import explain, packaged_recipes, read_recipe
from s2ap_train.training import TrainingConfig

__all__ = ["PruningRecipe", "Recipe", "load_pruning_recipe", "load_recipe", "packaged_recipes"]

R = TypeVar("R", bound=BaseModel)
_ONLY_FOR_HARDENING = ("classifier", "plain", "members", "score_model", "purifier", "detection", "evaluation")
ModelTable = str | dict[str, Any]
"""A network: its name, `name` and arguments, or package.module:factory; checked when it is made."""
Pruning = Annotated[PruningMethod, Field(discriminator="method"), BeforeValidator(without_foreign_keys)]
"""A method's settings by its name; "s2ap" stands for its `base` with S2AP."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RobustMembers(_Table):
    """Adversarially trained, pruned members: each is pretrained, pruned and fine-tuned with a seed of its own.

    Attributes:
        count: How many.
        models: Networks, one table a member, repeated when there are fewer tables than members.
        pretraining: Adversarial training before pruning.
        pruning: Method and its hyper-parameters.
        finetune: Adversarial training after it.
    """

    count: Annotated[int, Field(ge=0)]
    models: Annotated[tuple[ModelTable, ...], Field(min_length=1)]
    pretraining: TrainingConfig
    pruning: Pruning
    finetune: TrainingConfig


class ChannelMembers(_Table):
    """Naturally trained members, channels physically removed: at random, or all but those of the largest filters."""

    count: Annotated[int, Field(ge=0)]
    settings: ChannelPruning


class Members(_Table):
    """The ensemble: the paper's families and the robust backbone."""

    robust: RobustMembers
    random_channel: ChannelMembers
    l1_norm: ChannelMembers


class EvaluationSettings(_Table):
    """What the closing table of `harden` measures.

    Attributes:
        samples: Test images.
        budget: Preset of the adaptive attack, 'quick' or 'standard'.
    """

    samples: Annotated[int, Field(ge=10)]
    budget: Literal["quick", "standard"]


class MeasureSettings(_Table):
    """What `prune` measures beside accuracy, on test images.

    Attributes:
        samples: Test images at the most.
        steps: PGD steps.
        restarts: Random starts, each run once for the cross-entropy and once for the margin; the worst counts.
        sharpness_radius: Largest relative change of scores, the same for every method.
        sharpness_samples: Validation images that sharpness and curvature are measured on.
        curvature_iterations: Products with the surrogate Hessian.
        transferability: Whether attacks are carried between the dense, the pruned and the INT8 network.
        sensitivity: Whether input gradients are measured and the attack's own sanity is checked.
        autoattack: Test images that AutoAttack's standard version is run on, on the shipped network; 0 = none. It takes
            hundreds of times as long as the attacks above.
    """

    samples: Annotated[int, Field(ge=2)] = 256
    steps: Annotated[int, Field(ge=1)] = 20
    restarts: Annotated[int, Field(ge=1)] = 2
    sharpness_radius: Annotated[float, Field(gt=0)] = 0.05
    sharpness_samples: Annotated[int, Field(ge=2)] = 128
    curvature_iterations: Annotated[int, Field(ge=1)] = 30
    transferability: bool = True
    sensitivity: bool = True
    autoattack: Annotated[int, Field(ge=0)] = 0


class PruningRecipe(_Table):
    """One pruned robust classifier: data, network, adversarial training, pruning, fine-tuning.

    Attributes:
        name: Name in manifests and metrics.
        data: Data set.
        seed: Seed of the split and of everything that is trained.
        eps: Attack budget, l_inf in [0, 1] pixels, of everything that is measured.
        model: The network: `name` and its arguments.
        compute: Where it is trained, and in which precision.
        adversarial: Training of the dense network.
        pruning: Method and its hyper-parameters.
        finetune: Training of what is left.
        measures: What `prune` measures.
    """

    name: str
    data: DataSettings
    seed: int
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
        pruning = self.pruning
        if isinstance(pruning, ScratchTicket):
            pruning = replace(pruning, training=replace(pruning.training, epochs=self.adversarial.epochs))
        elif isinstance(pruning, (FlyingBird, TwinRep)):
            pruning = replace(pruning, training=self.adversarial)
        object.__setattr__(self, "pruning", pruning)
        return self

    def load_data(self, on_progress: Callable[[int, int], None] | None = None) -> Splits:
        """Load and split the data of the recipe.

        Raises:
            RecipeError: If the data set is not there, or is not as it should be.
        """
        return load_data(self.data, self.seed, on_progress)


class Recipe(PruningRecipe):
    """One complete hardening.

    Attributes:
        classifier: Which trained network is defended: the plain, the adversarially trained or the pruned one.
        plain: Natural training of the plain network.
        members: The ensemble.
        score_model: Training of the purifier's score model.
        purifier: The purification.
        detection: The sequential test.
        evaluation: The closing table.
    """

    classifier: Literal["plain", "adversarial", "pruned"]
    plain: TrainingConfig
    members: Members
    score_model: ScoreTraining
    purifier: Purification
    detection: Detection
    evaluation: EvaluationSettings


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe for `harden`: a packaged one by name or any by the path of its .toml file.

    Args:
        name: 'digits', or a path that ends in .toml.
        overrides: 'key.subkey=value' with a TOML value, applied in order.

    Raises:
        RecipeError: If there is no such recipe or key, a value cannot work, or the recipe is for pruning only.
    """
    data = read_recipe(name, overrides)
    missing = [key for key in _ONLY_FOR_HARDENING if key not in data]
    if len(missing) == len(_ONLY_FOR_HARDENING):
        raise RecipeError(
            f"recipe {name} is for pruning, it has no {missing[0]}, members or purifier; use it with s2ap-defend prune"
        )
    if "compute" in data:
        raise RecipeError(
            f"recipe {name} sets compute, which prune reads; harden trains on the CPU, one process a core: remove it"
        )
    return _validated(Recipe, name, data)


def load_pruning_recipe(name: str, overrides: Sequence[str] = ()) -> PruningRecipe:
    """Load a recipe for `prune`, without what it holds for `harden`. Arguments and errors as in `load_recipe`."""
    data = read_recipe(name, overrides)
    if any(key in data for key in _ONLY_FOR_HARDENING):
        _validated(Recipe, name, data)  # a misspelt key is refused, whoever it is for
        data = {key: value for key, value in data.items() if key not in _ONLY_FOR_HARDENING}
    return _validated(PruningRecipe, name, data)


def _validated(kind: type[R], name: str, data: dict[str, Any]) -> R:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"recipe {name}: {explain(error, kind)}") from error
