"""Networks that a user brings, looked at before anything is trained: does each know the images, fed as it is?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Float32, Int64
from s2ap_train.attacks.accuracy import robust_accuracy
from s2ap_train.data import Splits
from s2ap_train.hardening.network import VALIDATION_ATTACK_STEPS
from s2ap_train.models import Classifier, ModelTable, UserNetwork, create
from s2ap_train.models.onnx_network import OnnxNetwork
from s2ap_train.models.table import as_table
from s2ap_train.models.weight_file import load_given
from s2ap_train.recipe import EnsembleRecipe

__all__ = ["GivenClassifier", "check_given", "check_given_robust"]

_LEVEL = 1e-3  # an accuracy is surely above chance where guessing reaches it as rarely as this
_DOUBTFUL = 0.05  # a network goes on, and that is said: few images tell a fair one from guessing no better
_CLEARLY = 0.1  # by how much another way of feeding the network must be more accurate to be named
_BATCH = 256
_ATTACKED = 100  # validation images of the look at a robust network
_NORMALISATIONS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "--mean 0 --std 1 (pixels as they are)": ((0.0,), (1.0,)),
    "--mean .485,.456,.406 --std .229,.224,.225 (ImageNet)": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "--mean .4914,.4822,.4465 --std .2470,.2435,.2616 (CIFAR-10)": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "--mean .5 --std .5 (pixels in [-1, 1])": ((0.5,), (0.5,)),
    "--mean 0 --std .00392157 (pixels in 0..255)": ((0.0,), (1 / 255,)),
}


@dataclass(frozen=True)
class GivenClassifier:
    """A classifier of the user's with its weights.

    Attributes:
        model: It, in evaluation mode.
        accuracy: On the validation images.
        notes: What the user should know, one sentence each.
    """

    model: Classifier
    accuracy: float
    notes: tuple[str, ...]


def check_given(recipe: EnsembleRecipe, splits: Splits) -> GivenClassifier | None:
    """Load the classifier that was given and see whether it knows these images; None: none was given.

    Where it does no better than guessing, other normalisations, the order of the channels and of the classes are tried.

    Raises:
        RecipeError: If the weights are not the network's, or it is no better than guessing: with the likely cause.
    """
    if recipe.given.classifier is None and not recipe.from_onnx:
        return None
    return _known(recipe.model, recipe.given.classifier, recipe, splits)


def check_given_robust(recipe: EnsembleRecipe, splits: Splits) -> tuple[GivenClassifier, float] | None:
    """The same of the robust network that was given, and its accuracy under PGD on a few images; None: none was given.

    Raises:
        RecipeError: As `check_given`.
    """
    if recipe.given.robust is None:
        return None
    found = _known(recipe.robust_model, recipe.given.robust, recipe, splits, prefix="robust-")
    images, labels = splits.validation.images[:_ATTACKED], splits.validation.labels[:_ATTACKED]
    robust = robust_accuracy(found.model, images, labels, eps=recipe.eps, steps=VALIDATION_ATTACK_STEPS)
    notes = found.notes
    if robust <= _commonest(splits):
        notes += (
            f"under attack at eps {recipe.eps:.4g} only {robust:.1%} of the robust classifier's labels are right: were "
            "these weights trained adversarially, at an eps as large?",
        )
    return GivenClassifier(found.model, found.accuracy, notes), robust


def _known(
    table: ModelTable, weights: Path | None, recipe: EnsembleRecipe, splits: Splits, *, prefix: str = ""
) -> GivenClassifier:
    """A network with weights that knows the validation images; `prefix` is that of the options which say how it is fed.

    Raises:
        RecipeError: If the weights are not the network's, or it is no better than guessing: with the likely cause.
    """
    model = create(table, splits.image_shape, len(splits.classes), recipe.seed)
    notes = model.notes if weights is None else load_given(model, weights)
    model.eval()
    images, labels = splits.validation.images, splits.validation.labels
    answers = _answers(model, images)
    accuracy = float((answers == labels).mean())
    commonest = _commonest(splits)
    right = int((answers == labels).sum())
    knows = _above(right, len(labels), commonest, _DOUBTFUL)
    others = {name.replace("--", f"--{prefix}"): right for name, right in _other_feeds(model, images, labels).items()}
    best = max(others, key=lambda name: others[name], default=None)
    better = None
    if best is not None and others[best] >= accuracy + _CLEARLY:
        known = _above(round(others[best] * len(labels)), len(labels), commonest)
        better = f"{best} ({others[best]:.1%})" if known else None
    if knows:
        said = [] if better is None else [f"with {better} it would be more accurate than its {accuracy:.1%}"]
        if not _above(right, len(labels), commonest):
            said.append(f"{right} of {len(labels)} images right may be luck, as guessing gives ({commonest:.1%})")
        return GivenClassifier(model, accuracy, (*notes, *said))
    causes = [] if better is None else [f"with {better} it knows more of them: change how it is fed"]
    causes += _order_of_classes(answers, labels, splits.classes, commonest)
    if not causes:
        causes = [
            "no other normalisation, order of channels or order of classes that was tried helps; are these the "
            "weights of this network, trained on images like these?"
        ]
    file = weights or as_table(table).get("file")
    much = "no more than guessing" if accuracy <= commonest else "on so few no more than guessing may"
    raise RecipeError(
        f"the classifier of {file} gets {accuracy:.1%} of {len(labels)} validation images right, {much} "
        f"({commonest:.1%}); {'; '.join(causes)}"
    )


def _commonest(splits: Splits) -> float:
    """The share of the commonest class: what guessing reaches."""
    return float(np.bincount(splits.train.labels).max() / len(splits.train.labels))


def _above(right: int, images: int, chance: float, level: float = _LEVEL) -> bool:
    """Whether so many are more than a share of `chance` by exact binomial test."""
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    return bool(binomtest(right, images, chance, alternative="greater").pvalue < level)


def _answers(network: Callable[[Tensor], Tensor], images: Float32) -> Int64:
    with torch.no_grad():
        parts = [network(torch.from_numpy(images[i : i + _BATCH])).argmax(dim=1) for i in range(0, len(images), _BATCH)]
    answers: Int64 = torch.cat(parts).numpy()
    return answers


def _other_feeds(model: Classifier, images: Float32, labels: Int64) -> dict[str, float]:
    """Accuracy by what is changed: the normalisation, or the order of the channels."""
    feeds: dict[str, Callable[[Tensor], Tensor]] = {}
    if isinstance(model, (UserNetwork, OnnxNetwork)):
        for name, (mean, std) in _NORMALISATIONS.items():
            if len(mean) in {1, model.in_channels}:
                feeds[name] = _normalised(model.unnormalised, mean, std)
    if model.in_channels == 3:
        feeds["channels in the order blue, green, red"] = lambda x: model(x.flip(1))
    return {name: float((_answers(feed, images) == labels).mean()) for name, feed in feeds.items()}


def _normalised(
    network: Callable[[Tensor], Tensor], mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Tensor], Tensor]:
    shift, scale = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (mean, std))
    return lambda x: network((x - shift) / scale)


def _order_of_classes(answers: Int64, labels: Int64, classes: tuple[str, ...], commonest: float) -> list[str]:
    """Whether the answers fit the labels once the classes are numbered in another way.

    The order that fits half of the images best must fit the other half: on the images that it is found on, the best of
    all orders fits by chance.
    """
    half = np.random.default_rng(0).permutation(len(labels)) < len(labels) // 2
    fitting = 0
    for part in (half, ~half):
        order = _best_order(answers[part], labels[part], len(classes))
        fitting += int((order[answers[~part]] == labels[~part]).sum())
    if not _above(fitting, len(labels), commonest):
        return []
    order = _best_order(answers, labels, len(classes))
    accuracy = float((order[answers] == labels).mean())
    names = ", ".join(classes[column] for column in order[:12]) + (", ..." if len(classes) > 12 else "")
    return [
        f"with its classes in another order it gets {accuracy:.1%}: list the names in the order of its outputs in a "
        f"file for --classes, it seems to be {names}"
    ]


def _best_order(answers: Int64, labels: Int64, classes: int) -> Int64:
    """The label that each answer stands for, each for another, such that most are right."""
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    met = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(met, (answers, labels), 1)
    order: Int64 = linear_sum_assignment(-met)[1]
    return order
