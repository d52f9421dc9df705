"""The list of what `harden` trains: classifiers, members and the score model, each with what it needs and its key."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_defend.manifest import Seeds
from s2ap_train.compute import Compute, compute_here
from s2ap_train.data import Splits
from s2ap_train.ensemble import Base, Fitted, Jury, fit_pruned, train_on_together
from s2ap_train.ensemble.pruned import epochs_of
from s2ap_train.hardening.network import Network, known_network, measured, network_record, network_summary
from s2ap_train.hardening.part_names import ADVERSARIAL, JURY, PLAIN, PRUNED, jurors_of, member_name
from s2ap_train.hardening.score_model import score_model_parts
from s2ap_train.hardening.surrogate import lacked_gradients, train_surrogate
from s2ap_train.models import Classifier, ModelTable
from s2ap_train.models import build as build_classifier
from s2ap_train.models.weight_file import file_digest, load_given
from s2ap_train.pruning.scores import weight_counts
from s2ap_train.recipe import EnsembleRecipe, Recipe
from s2ap_train.recipe.key import data_digest, training_key
from s2ap_train.storage.parts import Needs, Part, PartStore, Trained
from s2ap_train.storage.snapshots import Snapshots
from s2ap_train.training import OnEpoch, Run, TrainingConfig, TrainingData, accuracies, train_classifier

__all__ = ["PartList", "train_dense"]

Fit = Callable[[Needs, Run], Fitted]


class PartList:
    """The parts of one recipe, as far as it has them.

    Args:
        recipe: What to train, where its `compute` says; every part that is handed out is on the CPU.
        splits: The data; train and validation are used.

    Raises:
        RecipeError: If this machine lacks what `compute` asks for, or a part is to be shared by several devices.
    """

    def __init__(self, recipe: EnsembleRecipe, splits: Splits) -> None:
        self._recipe, self._splits = recipe, splits
        self._compute, self._trained_on = _one_device(recipe), data_digest(splits)
        self._data = TrainingData.of(splits)

    def all(self) -> tuple[Part[Any], ...]:
        """Every part, those that take long first; one comes behind those that it needs."""
        members = [
            self.member(name, number) for name, family in self._recipe.members.items() for number in range(family.count)
        ]
        alone = [part for part in members if not part.needs]
        dependent = [part for part in members if part.needs]
        classifiers = self.classifiers()
        if not isinstance(self._recipe, Recipe):
            return classifiers[PLAIN], *alone, *dependent
        if PLAIN not in classifiers[ADVERSARIAL].needs:  # it is short: at the end it fills the gaps
            alone.append(classifiers.pop(PLAIN))
        return *self.score_models(), *classifiers.values(), *alone, *dependent, *self.juries()

    def classifiers(self) -> dict[str, Part[Classifier]]:
        """The plain, the adversarially trained and the pruned network, by name."""
        return {part.name: part for part in (self.plain(), self.adversarial(), self.pruned())}

    def plain(self) -> Part[Classifier]:
        """The classifier: as it was given, or naturally trained."""
        recipe = self._recipe
        if recipe.given.classifier is None and not recipe.from_onnx:
            return self.dense(PLAIN, recipe.plain)
        return self._given(PLAIN, recipe.model, recipe.given.classifier)

    def adversarial(self) -> Part[Classifier]:
        """The robust classifier: as it was given, or trained against attacks."""
        recipe = self._recipe
        if recipe.given.robust is not None:
            return self._given(ADVERSARIAL, recipe.robust_model, recipe.given.robust, robust=True)
        start = self.plain() if recipe.given.start == PLAIN else None
        return self.dense(ADVERSARIAL, recipe.adversarial, network=recipe.robust_model, start=start)

    def dense(
        self,
        name: str,
        config: TrainingConfig,
        *,
        network: ModelTable | None = None,
        start: Part[Classifier] | None = None,
    ) -> Part[Classifier]:
        """The recipe's network or another with the recipe's seed, trained in any way, or on from a part's weights."""
        seed, table = self._recipe.seed, self._recipe.model if network is None else network

        def fit(needs: Needs, run: Run) -> Fitted:
            model = self._data.create(table, seed) if start is None else copy.deepcopy(needs[start.name].model)
            training = train_classifier(model, *self._data.arrays, config, run=run)
            return Fitted(
                model=model,
                method=name,
                seeds=Seeds(initialisation=seed, mask=seed, order=seed),
                adversarially_trained=config.adversarial,
                dense_weights=weight_counts(model)[1],
                history=training.history,
            )

        needs = () if start is None else (start,)
        return self._part(name, config, seed, fit, epochs=config.epochs, network=table, needs=needs)

    def _given(self, name: str, network: ModelTable, weights: Path | None, *, robust: bool = False) -> Part[Classifier]:
        """A network with the weights of a file, or its own, as they are."""
        seed = self._recipe.seed
        surrogate = self._recipe.plain if lacked_gradients(network, self._splits) else None

        def fit(_: Needs, run: Run) -> Fitted:
            model = self._data.create(network, seed)
            if weights is not None:
                load_given(model, weights)
            history: tuple[dict[str, float], ...] = ()
            if surrogate is not None:
                history = train_surrogate(model, self._data, surrogate, run=run)
            return Fitted(
                model=model.eval(),
                method=name,
                seeds=Seeds(initialisation=seed, mask=seed, order=seed),
                adversarially_trained=robust,
                dense_weights=weight_counts(model)[1],
                history=history,
            )

        digest = None if weights is None else file_digest(weights)
        epochs = 1 if surrogate is None else surrogate.epochs
        settings = digest if surrogate is None else (digest, surrogate)
        return self._part(name, settings, seed, fit, epochs=epochs, network=network)

    def pruned(self) -> Part[Classifier]:
        """The pruned network that comes from the adversarially trained one."""
        recipe = self._recipe
        adversarial = self.adversarial()

        def fit(needs: Needs, run: Run) -> Fitted:
            return fit_pruned(
                run.place(copy.deepcopy(needs[ADVERSARIAL].model)),
                self._data,
                recipe.pruning,
                recipe.finetune,
                pretraining=recipe.adversarial,
                run=run,
            )

        settings = recipe.pruning, recipe.finetune
        epochs = epochs_of(recipe.pruning, recipe.finetune)
        return self._part(
            PRUNED, settings, recipe.seed, fit, epochs=epochs, network=recipe.robust_model, needs=(adversarial,)
        )

    def member(self, family: str, number: int) -> Part[Classifier]:
        """Member `number`, from 0, of a family."""
        recipe = self._recipe
        table, seed = recipe.members[family], recipe.member_seed(family, number)

        def fit(needs: Needs, run: Run) -> Fitted:
            base = Base(recipe.model, recipe.seed, lambda: needs[PLAIN].model)
            return table.train(number, self._data, base, run=run)

        return self._part(
            member_name(family, number),
            table.decides(number),
            seed,
            fit,
            epochs=table.epochs(number),
            network=table.network(number),
            needs=(self.plain(),) if table.starts_from_base else (),
        )

    def juries(self) -> tuple[Part[nn.ModuleList], ...]:
        """The jurors of all families trained on together, as one part behind theirs; none unless the recipe says so.

        Raises:
            RecipeError: If the recipe says so and has no jurors.
        """
        recipe, config = self._recipe, self._recipe.jury_training if isinstance(self._recipe, Recipe) else None
        if config is None:
            return ()
        jurors = [self.member(*one) for one in jurors_of(recipe)]
        if not jurors:
            raise RecipeError('jury_training has no jurors; give a family of members role = "juror", or leave it out')
        precision = self._compute.precision
        key = training_key(
            self._trained_on, (JURY, config, recipe.seed, recipe.eps, precision), needs=[one.key for one in jurors]
        )

        def train(needs: Needs, hook: OnEpoch, snapshots: Snapshots) -> Trained[nn.ModuleList]:
            jury = Jury([copy.deepcopy(needs[one.name].model) for one in jurors])
            training = train_on_together(jury, self._data, config, run=Run(recipe.seed, self._compute, snapshots, hook))
            jury.cpu()
            records = [
                {**needs[part.name].record, **measured(one, self._data, eps=recipe.eps)}
                for part, one in zip(jurors, jury.jurors, strict=True)
            ]
            record: dict[str, Any] = {
                "architecture": [one["architecture"] for one in records],
                **measured(jury, self._data, eps=recipe.eps),
                "sparsity": 0.0,
                "flip_rate": None,
                "history": list(training.history),
                "members": records,
            }
            return Trained(jury.jurors, record)

        return (
            Part(
                name=JURY,
                key=key,
                epochs=config.epochs,
                train=train,
                rebuild=_rebuilt_jury,
                note=accuracies,
                summary=network_summary,
                needs=tuple(one.name for one in jurors),
            ),
        )

    def score_models(self) -> tuple[Part[Any], ...]:
        """The score model of the purifier, behind its teacher where it has one.

        Raises:
            TypeError: If the recipe is not for hardening.
            RecipeError: If the score model does not fit the images.
        """
        if not isinstance(self._recipe, Recipe):
            raise TypeError(f"a {type(self._recipe).__name__} has no score model")
        return score_model_parts(self._recipe, self._splits, self._compute)

    def _part(
        self,
        name: str,
        settings: object,
        seed: int,
        fit: Fit,
        *,
        epochs: int,
        network: ModelTable | None = None,
        needs: tuple[Part[Any], ...] = (),
    ) -> Part[Classifier]:
        """A network as a part; `network` is what it is made of, the recipe's own where None."""
        recipe = self._recipe
        key = training_key(
            self._trained_on,
            (settings, seed, recipe.seed, recipe.eps, self._compute.precision),
            network=recipe.model if network is None else network,
            needs=[part.key for part in needs],
        )

        def train(needed: Needs, hook: OnEpoch, snapshots: Snapshots) -> Trained[Classifier]:
            fitted = fit(needed, Run(seed, self._compute, snapshots, hook))
            return Trained(fitted.model.cpu(), network_record(fitted, self._data, eps=recipe.eps), fitted.tensors)

        return Part(
            name=name,
            key=key,
            epochs=epochs,
            train=train,
            rebuild=build_classifier,
            note=accuracies,
            summary=network_summary,
            needs=tuple(part.name for part in needs),
        )


def _rebuilt_jury(architectures: Any) -> nn.ModuleList:  # noqa: ANN401 - a list, where other parts have a mapping
    return nn.ModuleList(build_classifier(one) for one in architectures)


def train_dense(recipe: EnsembleRecipe, splits: Splits, name: str, config: TrainingConfig, store: PartStore) -> Network:
    """The recipe's network, trained in any way, as a part of any name: read, or trained here."""
    stored = store.prepare([PartList(recipe, splits).dense(name, config)])[name]
    return known_network(stored.model, stored.record)


def _one_device(recipe: EnsembleRecipe) -> Compute:
    if recipe.compute.devices > 1:
        raise RecipeError(
            f"compute.devices is {recipe.compute.devices}, but every member trains on one device; set it to 1 and let "
            "--workers train several members at the same time"
        )
    return compute_here(recipe.compute)
