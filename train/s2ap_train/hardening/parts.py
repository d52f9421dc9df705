"""How each part of a recipe is trained: classifiers, members and the score model."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from s2ap_defend.errors import RecipeError
from s2ap_defend.manifest import Seeds
from s2ap_train.compute import Compute, launch
from s2ap_train.data import Splits
from s2ap_train.ensemble import Base, Fitted, TrainingData, fit_pruned
from s2ap_train.ensemble.pruned import epochs_of
from s2ap_train.hardening.network import Network, known_network, network_record, network_summary
from s2ap_train.hardening.score_model import NAME as SCORE_MODEL
from s2ap_train.hardening.score_model import ScorePart, score_part
from s2ap_train.models import build as build_classifier
from s2ap_train.pruning.scores import weight_counts
from s2ap_train.purifier import UNet
from s2ap_train.recipe import EnsembleRecipe, Recipe
from s2ap_train.storage.snapshots import Snapshots
from s2ap_train.storage.workbench import Trained, Workbench, accuracies
from s2ap_train.training import OnEpoch, TrainingConfig, train_classifier

__all__ = ["Group", "Network", "Workshop", "member_name"]

PLAIN = "plain"
_RECORD_VERSION = 2  # of what `network_record` says: parts that were kept with another are trained again


@dataclass(frozen=True)
class Group:
    """A piece of work that one process does: parts that come from one another.

    Attributes:
        work: Trains or reloads the parts.
        after: Names of the groups whose parts it starts from.
    """

    work: Callable[[], object]
    after: tuple[str, ...] = ()


def member_name(family: str, number: int) -> str:
    """Name of a member's group, part and folder."""
    return f"member-{family}-{number}"


class Workshop:
    """Trains or reloads the parts of one recipe.

    Args:
        recipe: What to train, where its `compute` says; every part that is handed out is on the CPU.
        splits: The data; train and validation are used.
        workbench: Keeps the parts.

    Raises:
        RecipeError: If this machine lacks what `compute` asks for, or a part is to be shared by several devices.
    """

    def __init__(self, recipe: EnsembleRecipe, splits: Splits, workbench: Workbench) -> None:
        self.recipe = recipe
        self.splits = splits
        self.workbench = workbench
        self.compute = _device(recipe)
        self.data = TrainingData(
            splits.train.images,
            splits.train.labels,
            (splits.validation.images, splits.validation.labels),
            len(splits.classes),
            self.compute,
        )
        self._plain: Network | None = None

    def groups(self) -> dict[str, Group]:
        """All pieces of work by name, those that take long first; a group comes behind those that it waits for."""
        alone: dict[str, Group] = {}
        dependent: dict[str, Group] = {}
        for name, family in self.recipe.members.items():
            for number in range(family.count):
                group = Group(partial(self.member, name, number), (PLAIN,) if family.starts_from_base else ())
                (dependent if group.after else alone)[member_name(name, number)] = group
        plain = {PLAIN: Group(self.plain)}
        if not isinstance(self.recipe, Recipe):
            return {**plain, **alone, **dependent}
        hardening = {SCORE_MODEL: Group(self.score_model), "adversarial": Group(self.robust_classifiers)}
        return {**hardening, **alone, **plain, **dependent}

    def plain(self) -> Network:
        """The plain network."""
        self._plain = self.dense(PLAIN, self.recipe.plain)
        return self._plain

    def dense(self, name: str, config: TrainingConfig) -> Network:
        """The recipe's network with the recipe's seed, trained in any way and kept as a part of any name."""
        return self._network(
            name,
            config,
            self.recipe.seed,
            lambda hook, snapshots: self._fit(name, config, hook, snapshots),
            epochs=config.epochs,
        )

    def robust_classifiers(self) -> tuple[Network, Network]:
        """The adversarially trained network and the pruned one that comes from it."""
        recipe, seed = self.recipe, self.recipe.seed
        adversarial = self.dense("adversarial", recipe.adversarial)

        def prune(hook: OnEpoch, snapshots: Snapshots) -> Fitted:
            return fit_pruned(
                self.compute.place(copy.deepcopy(adversarial.model)),
                self.data,
                recipe.pruning,
                recipe.finetune,
                pretraining=recipe.adversarial,
                seed=seed,
                snapshots=snapshots,
                on_epoch=hook,
            )

        pruned = self._network(
            "pruned",
            (recipe.adversarial, recipe.pruning, recipe.finetune),
            seed,
            prune,
            epochs=epochs_of(recipe.pruning, recipe.finetune),
        )
        return adversarial, pruned

    def member(self, family: str, number: int) -> Network:
        """Member `number`, from 0, of a family."""
        table, seed = self.recipe.members[family], self.recipe.member_seed(family, number)
        base = Base(self.recipe.model, self.recipe.seed, lambda: (self._plain or self._quiet_plain()).model)
        return self._network(
            member_name(family, number),
            (table.decides(number), self.recipe.plain if table.starts_from_base else None),
            seed,
            lambda hook, snapshots: table.train(number, self.data, base, seed=seed, snapshots=snapshots, on_epoch=hook),
            epochs=table.epochs(number),
        )

    def members(self) -> dict[str, tuple[Network, ...]]:
        """All members by family, in the order of the recipe."""
        families = self.recipe.members
        return {name: tuple(self.member(name, i) for i in range(family.count)) for name, family in families.items()}

    def score_model(self) -> UNet:
        """The score model of the purifier. Errors as in `score_model_part`."""
        return self.score_model_part().net

    def score_model_part(self) -> ScorePart:
        """The score model with what is known of it.

        Raises:
            TypeError: If the recipe is not for hardening.
        """
        if not isinstance(self.recipe, Recipe):
            raise TypeError(f"a {type(self.recipe).__name__} has no score model")
        return score_part(self.recipe, self.splits, self.workbench, self.compute)

    def _quiet_plain(self) -> Network:
        """The plain network for those who start from it; not reported once more."""
        silent = Workshop(self.recipe, self.splits, self.workbench.silent())
        self._plain = silent.plain()
        return self._plain

    def _fit(self, method: str, config: TrainingConfig, hook: OnEpoch, snapshots: Snapshots) -> Fitted:
        seed = self.recipe.seed
        model = self.data.create(self.recipe.model, seed)
        training = train_classifier(
            model, *self.data.arrays, config, seed=seed, compute=self.compute, snapshots=snapshots, on_epoch=hook
        )
        return Fitted(
            model=model,
            method=method,
            seeds=Seeds(initialisation=seed, mask=seed, order=seed),
            adversarially_trained=config.adversarial,
            dense_weights=weight_counts(model)[1],
            history=training.history,
        )

    def _network(
        self, name: str, settings: object, seed: int, build: Callable[[OnEpoch, Snapshots], Fitted], *, epochs: int
    ) -> Network:
        recipe = self.recipe

        def train(hook: OnEpoch, snapshots: Snapshots) -> Trained[Any]:
            fitted = build(hook, snapshots)
            record = network_record(fitted, self.data, eps=recipe.eps)
            return Trained(fitted.model.cpu(), record, fitted.beside)

        common = (recipe.data, recipe.seed, recipe.model, recipe.eps, self.compute.precision, _RECORD_VERSION)
        model, record = self.workbench.part(
            name,
            settings=(*common, settings, seed),
            epochs=epochs,
            rebuild=build_classifier,
            train=train,
            note=accuracies,
            summary=network_summary,
        )
        return known_network(model, record)


def _device(recipe: EnsembleRecipe) -> Compute:
    if recipe.compute.devices > 1:
        raise RecipeError(
            f"compute.devices is {recipe.compute.devices}, but every member trains on one device; set it to 1 and let "
            "--workers train several members at the same time"
        )
    return launch(recipe.compute, _given)


def _given(compute: Compute) -> Compute:
    return compute
