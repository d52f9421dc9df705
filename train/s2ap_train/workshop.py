"""How each part of a recipe is trained: classifiers, members and the score model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from s2ap_train.attacks.accuracy import accuracy, robust_accuracy
from s2ap_train.data import Splits
from s2ap_train.ensemble import ChannelPruning, channel_member, largest_channels, random_channels
from s2ap_train.ensemble.channel_choice import ChooseChannels
from s2ap_train.models import Classifier
from s2ap_train.models import build as build_classifier
from s2ap_train.models import create as create_classifier
from s2ap_train.pruning import PruningMethod, finetune, prune
from s2ap_train.pruning.methods import epochs_known, method_name, needs_training, needs_tuning, structure_name
from s2ap_train.pruning.scores import weight_counts
from s2ap_train.purifier import UNet, train_score_model
from s2ap_train.purifier import build as build_score_model
from s2ap_train.recipe import ModelTable, Recipe
from s2ap_train.snapshots import Snapshots
from s2ap_train.training import OnEpoch, TrainingConfig, train_classifier
from s2ap_train.workbench import Trained, Workbench, accuracies

VALIDATION_ATTACK_STEPS = 20
_NATURAL = {"plain", "random-channel", "l1-norm"}


@dataclass(frozen=True)
class Network:
    """A trained classifier and what is known of it; accuracies are on the validation split.

    Attributes:
        model: In evaluation mode.
        method: 'plain', 'adversarial', a pruning method such as 's2ap', 'random-channel' or 'l1-norm'.
        sparsity: Fraction of the weights of the unpruned network that are zero or removed.
        adversarially_trained: Whether it was trained against attacks.
        seed: Of initialisation, mask and data order.
        clean_accuracy: Without attack.
        robust_accuracy: Under PGD at the recipe's eps.
    """

    model: Classifier
    method: str
    sparsity: float
    adversarially_trained: bool
    seed: int
    clean_accuracy: float
    robust_accuracy: float


@dataclass(frozen=True)
class _Fitted:
    """A classifier after training and, where it was pruned, masks and scores; `weights` counts those before pruning."""

    model: Classifier
    weights: int
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    history: tuple[dict[str, float], ...] = ()


class Workshop:
    """Trains or reloads the parts of one recipe, in groups that do not depend on one another.

    Args:
        recipe: What to train.
        splits: The data; train and validation are used.
        workbench: Keeps the parts.
    """

    def __init__(self, recipe: Recipe, splits: Splits, workbench: Workbench) -> None:
        self.recipe = recipe
        self.splits = splits
        self.workbench = workbench
        self.train_arrays = (splits.train.images, splits.train.labels)
        self.validation = (splits.validation.images, splits.validation.labels)

    def groups(self) -> dict[str, Callable[[], object]]:
        """Independent pieces of work by name, long ones first."""
        members = {
            f"member-robust-{i}": partial(self.robust_member, i) for i in range(self.recipe.members.robust.count)
        }
        return {
            "score-model": self.score_model,
            "adversarial": self.robust_classifiers,
            **members,
            "plain": self.standard_networks,
        }

    def robust_classifiers(self) -> tuple[Network, Network]:
        """The adversarially trained network and the S2AP-pruned one that comes from it."""
        recipe, seed = self.recipe, self.recipe.seed
        adversarial = self._network(
            "adversarial",
            "adversarial",
            recipe.adversarial,
            seed,
            lambda hook, snapshots: self._fit(recipe.model, recipe.adversarial, seed, hook, snapshots),
            epochs=recipe.adversarial.epochs,
        )
        pruned = self._network(
            "pruned",
            method_name(recipe.pruning),
            (recipe.adversarial, recipe.pruning, recipe.finetune),
            seed,
            lambda hook, snapshots: self._prune(
                adversarial.model, recipe.pruning, recipe.finetune, seed, hook, snapshots
            ),
            epochs=_epochs(recipe.pruning, recipe.finetune),
        )
        return adversarial, pruned

    def robust_member(self, i: int) -> Network:
        """S2AP member number i, with pretraining, mask and data order of its own."""
        family = self.recipe.members.robust
        seed, model = self.recipe.seed + 100 + i, family.models[i % len(family.models)]
        trained = needs_training(family.pruning)

        def build(hook: OnEpoch, snapshots: Snapshots) -> _Fitted:
            if trained:
                dense = self._fit(model, family.pretraining, seed, hook, snapshots.child("dense")).model
            else:
                dense = self._create(model, seed)
            return self._prune(dense, family.pruning, family.finetune, seed, hook, snapshots)

        epochs = _epochs(family.pruning, family.finetune) + (family.pretraining.epochs if trained else 0)
        settings = (model, family.pretraining, family.pruning, family.finetune)
        method = method_name(family.pruning)
        return self._network(f"member-robust-{i}", method, settings, seed, build, epochs=epochs)

    def standard_networks(self) -> tuple[Network, list[Network]]:
        """The plain network and the members that are cut from it."""
        recipe = self.recipe
        plain = self._network(
            "plain",
            "plain",
            recipe.plain,
            recipe.seed,
            lambda hook, snapshots: self._fit(recipe.model, recipe.plain, recipe.seed, hook, snapshots),
            epochs=recipe.plain.epochs,
        )
        families = self.recipe.members
        members = []
        for method, family, choose, first_seed in (
            ("random-channel", families.random_channel, random_channels, 200),
            ("l1-norm", families.l1_norm, largest_channels, 300),
        ):
            for i in range(family.count):
                seed = self.recipe.seed + first_seed + i
                name, settings = f"member-{method}-{i}", (self.recipe.plain, family.settings)
                build = partial(self._remove_channels, plain.model, choose, family.settings, seed)
                epochs = family.settings.training.epochs
                members.append(self._network(name, method, settings, seed, build, epochs=epochs))
        return plain, members

    def _remove_channels(
        self,
        base: Classifier,
        choose: ChooseChannels,
        config: ChannelPruning,
        seed: int,
        hook: OnEpoch,
        snapshots: Snapshots,
    ) -> _Fitted:
        data = (*self.train_arrays, self.validation)
        member = channel_member(base, choose, *data, config, seed=seed, snapshots=snapshots, on_epoch=hook)
        return _Fitted(member.model, weight_counts(base)[1], {}, member.training.history)

    def score_model(self) -> UNet:
        """The score model of the purifier."""
        config, seed = self.recipe.score_model, self.recipe.seed

        def train(hook: OnEpoch, _: Snapshots) -> Trained[UNet]:
            images, validation = self.splits.train.images, self.splits.validation.images
            trained = train_score_model(images, config, seed=seed, validation=validation, on_epoch=hook)
            record = {
                "architecture": trained.net.architecture(),
                "validation_error": trained.validation_error,
                "history": list(trained.history),
            }
            return Trained(trained.net, record)

        net, _ = self.workbench.part(
            "score-model",
            settings=(self.recipe.data, config, seed),
            epochs=config.epochs,
            rebuild=build_score_model,
            train=train,
            note=_denoising,
            summary=_denoising,
        )
        return net.requires_grad_(False)

    def _create(self, model: ModelTable, seed: int) -> Classifier:
        return create_classifier(model, self.splits.image_shape, len(self.splits.classes), seed)

    def _fit(
        self, table: ModelTable, config: TrainingConfig, seed: int, hook: OnEpoch, snapshots: Snapshots
    ) -> _Fitted:
        model = self._create(table, seed)
        training = train_classifier(
            model, *self.train_arrays, self.validation, config, seed=seed, snapshots=snapshots, on_epoch=hook
        )
        return _Fitted(model, weight_counts(model)[1], {}, training.history)

    def _prune(
        self,
        dense: Classifier,
        pruning: PruningMethod,
        tuning: TrainingConfig,
        seed: int,
        hook: OnEpoch,
        snapshots: Snapshots,
    ) -> _Fitted:
        data = (*self.train_arrays, self.validation)
        pruned = prune(dense, *data, pruning, seed=seed, snapshots=snapshots.child("pruning"), on_epoch=hook)
        tuned = finetune(
            pruned,
            *data,
            tuning if needs_tuning(pruning) else None,
            structure=structure_name(pruning),
            seed=seed,
            snapshots=snapshots.child("finetune"),
            on_epoch=hook,
        )
        kept = {f"mask.{name}": mask for name, mask in pruned.masks.items()}
        kept |= {f"score.{name}": score for name, score in pruned.scores.items()}
        history = () if tuned.tuning is None else tuned.tuning.history
        if not isinstance(tuned.model, Classifier):  # our own bug
            raise TypeError(f"pruning returned a {type(tuned.model).__name__}")
        return _Fitted(tuned.model, weight_counts(dense)[1], kept, pruned.history + history)

    def _network(
        self,
        name: str,
        method: str,
        settings: object,
        seed: int,
        build: Callable[[OnEpoch, Snapshots], _Fitted],
        *,
        epochs: int,
    ) -> Network:
        recipe = self.recipe

        def train(hook: OnEpoch, snapshots: Snapshots) -> Trained[Classifier]:
            fitted = build(hook, snapshots)
            return Trained(fitted.model, self._measure(fitted, method, seed), fitted.kept)

        model, record = self.workbench.part(
            name,
            settings=(recipe.data, recipe.seed, recipe.model, recipe.eps, settings, seed),
            epochs=epochs,
            rebuild=build_classifier,
            train=train,
            note=accuracies,
            summary=_summary,
        )
        return Network(
            model=model,
            method=method,
            sparsity=record["sparsity"],
            adversarially_trained=record["adversarially_trained"],
            seed=seed,
            clean_accuracy=record["clean_accuracy"],
            robust_accuracy=record["robust_accuracy"],
        )

    def _measure(self, fitted: _Fitted, method: str, seed: int) -> dict[str, Any]:
        model, robust = fitted.model, method not in _NATURAL
        flips = [epoch["flip_rate"] for epoch in fitted.history if "flip_rate" in epoch]
        return {
            "architecture": model.architecture(),
            "method": method,
            "seed": seed,
            "sparsity": 1.0 - weight_counts(model)[0] / fitted.weights,
            "adversarially_trained": robust,
            "clean_accuracy": accuracy(model, *self.validation),
            "robust_accuracy": robust_accuracy(
                model, *self.validation, eps=self.recipe.eps, steps=VALIDATION_ATTACK_STEPS
            ),
            "flip_rate": sum(flips) / len(flips) if flips else None,
            "history": list(fitted.history),
        }


def _epochs(pruning: PruningMethod, tuning: TrainingConfig) -> int:
    """Epochs of pruning and fine-tuning, as far as they are known before."""
    return epochs_known(pruning) + (tuning.epochs if needs_tuning(pruning) else 0)


def _summary(record: Mapping[str, Any]) -> str:
    text = f"accuracy {record['clean_accuracy']:.1%}  under PGD {record['robust_accuracy']:.1%}"
    if record["sparsity"]:
        text += f"  sparsity {record['sparsity']:.0%}"
    return text if record["flip_rate"] is None else f"{text}  mask flips {record['flip_rate']:.2%}"


def _denoising(metrics: Mapping[str, Any]) -> str:
    return f"denoising error {metrics['validation_error']:.3f} of the noise"
