"""Trained networks as stages, so that every row of a table is attacked and timed on the engine that serves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto

from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.errors import RecipeError
from s2ap_defend.model_file import open_model_file
from s2ap_defend.progress import Reporter
from s2ap_defend.stages import CLASSIFIER, cut_stage
from s2ap_defend.types import Float32
from s2ap_export.hardening.precision import precision_of
from s2ap_export.hardening.stage_precision import in_precision
from s2ap_export.tracing.trace import frozen, trace_classifier
from s2ap_train.compute.threads import one_thread
from s2ap_train.data import Splits
from s2ap_train.hardening.network import Network, known_network
from s2ap_train.hardening.parts import PartList
from s2ap_train.hardening.train import Components
from s2ap_train.models import Classifier, fold_batch_norm
from s2ap_train.recipe import Recipe
from s2ap_train.redteam.ablation.names import ADVERSARIAL, WIDER
from s2ap_train.redteam.ablation.networks import Networks
from s2ap_train.redteam.ablation.surrogates import surrogate_names, train_surrogates
from s2ap_train.redteam.ablation.wider import NAME as WIDER_PART
from s2ap_train.redteam.ablation.wider import defence_flops, wider_classifier
from s2ap_train.storage.parts import PartStore

__all__ = ["compared_networks", "networks_of", "still_to_train", "to_stage"]

_COMPARED = 16
_CLOSE = 1e-3  # of log-probabilities, between the classifier in a file and the network it was made from
_COSTED = 64


def to_stage(network: Classifier) -> ModelProto:
    """The stage `image` -> `log_probabilities` of a classifier, batch normalisation folded."""
    return trace_classifier(fold_batch_norm(frozen(network)), network.image_shape, scope=CLASSIFIER)


def networks_of(components: Components) -> Networks:
    """What a hardening has trained that is not in its file."""
    return Networks({ADVERSARIAL: to_stage(components.adversarial.model)})


def compared_networks(
    model: Path,
    recipe: Recipe,
    splits: Splits,
    checkpoints: Path,
    folder: Path,
    reporter: Reporter,
    *,
    train: bool,
    transfer: bool,
) -> Networks:
    """The networks that a model file is compared with, from the work folder of its hardening.

    Args:
        model: The model file.
        recipe: As it was hardened.
        splits: The recipe's data.
        checkpoints: The work folder; nothing is written there.
        folder: Where networks are kept that no hardening trains: the wider classifier, the attacker's own.
        reporter: Shows every network.
        train: Whether those are trained; otherwise they are left out.
        transfer: Whether an attack asks for the attacker's own.

    Raises:
        RecipeError: If the folder holds networks of another file.
    """
    missing: dict[str, str] = {}
    stages: dict[str, ModelProto] = {}
    parts, store = PartList(recipe, splits).classifiers(), PartStore(checkpoints, reporter)
    with one_thread():
        stored = {name: store.read(parts[name]) for name in dict.fromkeys(("adversarial", recipe.classifier))}
        found = {name: known_network(one.model, one.record) for name, one in stored.items() if one is not None}
        if len(found) < len(stored):
            absent = next(name for name, one in stored.items() if one is None)
            why = (
                f"{checkpoints} has no part {absent} of this recipe; name the work folder of harden with --checkpoints"
            )
            missing[ADVERSARIAL] = why
        else:
            _check_same(model, recipe, found[recipe.classifier], splits.fit.images, checkpoints)
            stages[ADVERSARIAL] = to_stage(found["adversarial"].model)
        surrogates: tuple[Classifier, ...] = ()
        if train:
            if first := still_to_train(folder, transfer=transfer):
                reporter.line(f"to be trained before the attacks, as no hardening trains them: {', '.join(first)}")
            stages[WIDER] = to_stage(_wider(model, recipe, splits, folder, reporter).model)
            if transfer:
                surrogates = tuple(one.model for one in train_surrogates(recipe, splits, folder, reporter))
        else:
            missing[WIDER] = "it is not trained; --ablation all does"
    return Networks(stages, surrogates, missing)


def still_to_train(folder: Path, *, transfer: bool) -> tuple[str, ...]:
    """Networks that no hardening trains and that a folder does not hold yet. Arguments as for `compared_networks`."""
    names = (WIDER_PART, *(surrogate_names() if transfer else ()))
    return tuple(name for name in names if not (folder / name).exists())


def _wider(model: Path, recipe: Recipe, splits: Splits, folder: Path, reporter: Reporter) -> Network:
    """The classifier that costs as much as the defence does on a clean image."""
    some = splits.validation.subset(slice(0, _COSTED))
    wanted = defence_flops(open_model_file(model), some.images)
    return wider_classifier(recipe, splits, PartStore(folder, reporter), wanted)


def _check_same(model: Path, recipe: Recipe, network: Network, images: Float32, checkpoints: Path) -> None:
    """Refuse checkpoints of another file than the one that is evaluated; `images` are those of the fitting split."""
    file = open_model_file(model)
    inside, own = cut_stage(file.proto, CLASSIFIER), to_stage(network.model)
    precision = "float32" if file.manifest.precision is None else file.manifest.precision.classifier
    if precision_of(own) != precision:
        own = in_precision(own, precision, images, tensorrt=recipe.export.tensorrt)
    found = [
        OnnxRuntimeEngine(stage.SerializeToString(), device="cpu", threads=1).run(
            {"image": images[:_COMPARED]}, ["log_probabilities"]
        )
        for stage in (inside, own)
    ]
    if float(np.abs(found[0][0] - found[1][0]).max()) > _CLOSE:
        raise RecipeError(
            f"{checkpoints} holds a classifier that is not the one in {model}; name the work folder that the file was "
            "made in with --checkpoints, and change the recipe with --set as it was changed there"
        )
