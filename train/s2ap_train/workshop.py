"""How each part of a recipe is trained: classifiers, members and the score model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from s2ap_defend.errors import RecipeError
from s2ap_train.attacks.accuracy import accuracy, robust_accuracy
from s2ap_train.data import Splits
from s2ap_train.ensemble import ChannelMember, l1_norm_member, random_channel_member
from s2ap_train.models import SmallCNN
from s2ap_train.models import build as build_classifier
from s2ap_train.pruning.finetune import Finetune, finetune
from s2ap_train.pruning.s2ap import S2AP, prune_s2ap
from s2ap_train.pruning.scores import prunable_weights
from s2ap_train.purifier import UNet, train_score_model
from s2ap_train.purifier import build as build_score_model
from s2ap_train.recipe import Recipe
from s2ap_train.training import OnEpoch, TrainingConfig, train_classifier
from s2ap_train.workbench import Trained, Workbench

VALIDATION_ATTACK_STEPS = 20


@dataclass(frozen=True)
class Network:
    """A trained classifier and what is known of it; accuracies are on the validation split.

    Attributes:
        model: In evaluation mode.
        method: 'plain', 'adversarial', 's2ap', 'random-channel' or 'l1-norm'.
        sparsity: Fraction of the weights of the unpruned network that are zero or removed.
        adversarially_trained: Whether it was trained against attacks.
        seed: Of initialisation, mask and data order.
        clean_accuracy: Without attack.
        robust_accuracy: Under PGD at the recipe's eps.
    """

    model: SmallCNN
    method: str
    sparsity: float
    adversarially_trained: bool
    seed: int
    clean_accuracy: float
    robust_accuracy: float


@dataclass(frozen=True)
class _Fitted:
    """A classifier after training and, where it was pruned, masks and scores."""

    model: SmallCNN
    kept: Mapping[str, Tensor]
    history: tuple[dict[str, float], ...]


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
        members = {f"member-s2ap-{i}": partial(self.robust_member, i) for i in range(self.recipe.members.s2ap.count)}
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
            lambda hook: self._fit(recipe.widths, recipe.adversarial, seed, hook),
            epochs=recipe.adversarial.epochs,
        )
        s2ap = self._network(
            "s2ap",
            "s2ap",
            (recipe.adversarial, recipe.s2ap, recipe.finetune),
            seed,
            lambda hook: self._prune(adversarial.model, recipe.s2ap, recipe.finetune, seed, hook),
            epochs=recipe.s2ap.training.epochs + recipe.finetune.epochs,
        )
        return adversarial, s2ap

    def robust_member(self, i: int) -> Network:
        """S2AP member number i, with pretraining, mask and data order of its own."""
        family = self.recipe.members.s2ap
        seed, widths = self.recipe.seed + 100 + i, family.widths[i % len(family.widths)]

        def build(hook: OnEpoch) -> _Fitted:
            dense = self._fit(widths, family.pretraining, seed, hook)
            return self._prune(dense.model, family.s2ap, family.finetune, seed, hook)

        epochs = family.pretraining.epochs + family.s2ap.training.epochs + family.finetune.epochs
        settings = (widths, family.pretraining, family.s2ap, family.finetune)
        return self._network(f"member-s2ap-{i}", "s2ap", settings, seed, build, epochs=epochs)

    def standard_networks(self) -> tuple[Network, list[Network]]:
        """The plain network and the members that are cut from it."""
        recipe = self.recipe
        plain = self._network(
            "plain",
            "plain",
            recipe.plain,
            recipe.seed,
            lambda hook: self._fit(recipe.widths, recipe.plain, recipe.seed, hook),
            epochs=recipe.plain.epochs,
        )
        families = self.recipe.members
        random_channel = partial(random_channel_member, config=families.random_channel.settings)
        l1_norm = partial(l1_norm_member, config=families.l1_norm.settings)
        members = []
        for method, family, make, first_seed in (
            ("random-channel", families.random_channel, random_channel, 200),
            ("l1-norm", families.l1_norm, l1_norm, 300),
        ):
            for i in range(family.count):
                seed = self.recipe.seed + first_seed + i
                name, settings = f"member-{method}-{i}", (self.recipe.plain, family.settings)
                build = partial(self._remove_channels, make, plain.model, seed)
                epochs = family.settings.training.epochs
                members.append(self._network(name, method, settings, seed, build, epochs=epochs))
        return plain, members

    def _remove_channels(self, make: Callable[..., ChannelMember], base: SmallCNN, seed: int, hook: OnEpoch) -> _Fitted:
        member = make(base, *self.train_arrays, self.validation, seed=seed, on_epoch=hook)
        return _Fitted(member.model, {}, member.training.history)

    def score_model(self) -> UNet:
        """The score model of the purifier."""
        config, seed = self.recipe.score_model, self.recipe.seed

        def train(hook: OnEpoch) -> Trained[UNet]:
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

    def _fit(self, widths: tuple[int, ...], config: TrainingConfig, seed: int, hook: OnEpoch) -> _Fitted:
        channels, height, width = self.splits.image_shape
        if height != width:
            raise RecipeError(f"the small CNN takes square images, the data has {width}x{height}")
        model = SmallCNN(channels, len(self.splits.classes), widths, height, seed=seed)
        training = train_classifier(model, *self.train_arrays, self.validation, config, seed=seed, on_epoch=hook)
        return _Fitted(model, {}, training.history)

    def _prune(self, dense: SmallCNN, s2ap: S2AP, tuning: TrainingConfig, seed: int, hook: OnEpoch) -> _Fitted:
        pruned = prune_s2ap(dense, *self.train_arrays, self.validation, s2ap, seed=seed, on_epoch=hook)
        model = pruned.model
        if not isinstance(model, SmallCNN):  # our own bug
            raise TypeError(f"pruning returned a {type(model).__name__}")
        tuned = finetune(
            model,
            *self.train_arrays,
            self.validation,
            Finetune(training=tuning),
            masks=pruned.masks,
            seed=seed,
            on_epoch=hook,
        )
        kept = {f"mask.{name}": mask for name, mask in pruned.masks.items()}
        kept |= {f"score.{name}": score for name, score in pruned.scores.items()}
        return _Fitted(model, kept, pruned.history + tuned.history)

    def _network(
        self,
        name: str,
        method: str,
        settings: object,
        seed: int,
        build: Callable[[OnEpoch], _Fitted],
        *,
        epochs: int,
    ) -> Network:
        recipe = self.recipe

        def train(hook: OnEpoch) -> Trained[SmallCNN]:
            fitted = build(hook)
            return Trained(fitted.model, self._measure(fitted, method, seed), fitted.kept)

        model, record = self.workbench.part(
            name,
            settings=(recipe.data, recipe.seed, recipe.widths, recipe.eps, settings, seed),
            epochs=epochs,
            rebuild=build_classifier,
            train=train,
            note=_accuracies,
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
        model, robust = fitted.model, method in {"adversarial", "s2ap"}
        flips = [epoch["flip_rate"] for epoch in fitted.history if "flip_rate" in epoch]
        return {
            "architecture": model.architecture(),
            "method": method,
            "seed": seed,
            "sparsity": self._sparsity(model, method),
            "adversarially_trained": robust,
            "clean_accuracy": accuracy(model, *self.validation),
            "robust_accuracy": robust_accuracy(
                model, *self.validation, eps=self.recipe.eps, steps=VALIDATION_ATTACK_STEPS
            ),
            "flip_rate": sum(flips) / len(flips) if flips else None,
            "history": list(fitted.history),
        }

    def _sparsity(self, model: SmallCNN, method: str) -> float:
        weights = prunable_weights(model).values()
        nonzero = sum(int(torch.count_nonzero(weight)) for weight in weights)
        if method == "s2ap":
            return 1.0 - nonzero / sum(weight.numel() for weight in weights)
        channels, height, _ = self.splits.image_shape
        whole = SmallCNN(channels, len(self.splits.classes), self.recipe.widths, height, seed=0)
        return 1.0 - nonzero / sum(weight.numel() for weight in prunable_weights(whole).values())


def _accuracies(metrics: Mapping[str, float]) -> str:
    names = {"validation_accuracy": "accuracy", "validation_robust_accuracy": "robust", "flip_rate": "mask flips"}
    return "  ".join(f"{text} {metrics[key]:.1%}" for key, text in names.items() if key in metrics)


def _summary(record: Mapping[str, Any]) -> str:
    text = f"accuracy {record['clean_accuracy']:.1%}  under PGD {record['robust_accuracy']:.1%}"
    if record["sparsity"]:
        text += f"  sparsity {record['sparsity']:.0%}"
    return text if record["flip_rate"] is None else f"{text}  mask flips {record['flip_rate']:.2%}"


def _denoising(metrics: Mapping[str, Any]) -> str:
    return f"denoising error {metrics['validation_error']:.3f} of the noise"
