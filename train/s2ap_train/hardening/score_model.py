"""The score model as a part: how it is trained, and what is reported of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from s2ap_defend.errors import RecipeError
from s2ap_defend.files import replace_file
from s2ap_train.compute import Compute
from s2ap_train.data import Splits
from s2ap_train.models.cost import parameter_count
from s2ap_train.purifier import ScoreTraining, UNet, build, train_score_model
from s2ap_train.purifier.denoisers import fit_gaussian
from s2ap_train.purifier.sizes import pass_flops
from s2ap_train.recipe import Recipe, ScoreRecipe
from s2ap_train.recipe.key import data_digest, training_key
from s2ap_train.storage.checkpoint import json_bytes
from s2ap_train.storage.parts import Needs, Part, Stored, Trained
from s2ap_train.storage.snapshots import Snapshots
from s2ap_train.training import OnEpoch, Run

NAME = "score-model"
TEACHER = "score-model-teacher"
METRICS_FILE = "metrics.json"
METRICS_VERSION = 1
SAMPLES = 8


def score_model_parts(recipe: Recipe | ScoreRecipe, splits: Splits, compute: Compute) -> tuple[Part[UNet], ...]:
    """The score model of a recipe, as a part, behind its teacher where it has one.

    Labels are not in its key, nor is the number of devices: it changes the order of sums, and no statistics.

    Args:
        recipe: Gives the settings and the seed.
        splits: Training images for its weights, validation images for its errors.
        compute: Where it is trained.

    Raises:
        RecipeError: If the recipe's score model does not fit the images.
    """
    config = recipe.score_model
    teacher = config.of_teacher()
    try:
        config.architecture(splits.image_shape)
        if teacher is not None:
            teacher.architecture(splits.image_shape)
    except RecipeError as error:
        raise RecipeError(f"recipe {recipe.name}: score_model: {error}") from error
    teachers = () if teacher is None else (_part(TEACHER, teacher, recipe, splits, compute),)
    return *teachers, _part(NAME, config, recipe, splits, compute, *teachers)


def _part(
    name: str,
    config: ScoreTraining,
    recipe: Recipe | ScoreRecipe,
    splits: Splits,
    compute: Compute,
    *teachers: Part[UNet],
) -> Part[UNet]:
    """A score model with settings of its own; it learns from the one that it needs, if any."""

    def train(needs: Needs, hook: OnEpoch, snapshots: Snapshots) -> Trained[UNet]:
        trained = train_score_model(
            splits.train.images,
            config,
            run=Run(recipe.seed, compute, snapshots, hook),
            validation=splits.validation.images,
            teacher=needs[TEACHER].model if teachers else None,
        )
        record = {
            "architecture": trained.net.architecture(),
            "parameters": parameter_count(trained.net),
            "flops": pass_flops(trained.net, splits.image_shape),
            "device": compute.device.type,
            "processes": compute.world_size,
            "precision": compute.precision,
            "validation_error": trained.validation_error,
            "history": list(trained.history),
            "denoising": [asdict(error) for error in trained.denoising],
        }
        return Trained(trained.net, record)

    return Part(
        name=name,
        key=training_key(
            data_digest(splits, labels=False),
            config.settings(),
            recipe.seed,
            compute.precision,
            needs=[part.key for part in teachers],
        ),
        epochs=config.epochs,
        train=train,
        rebuild=_rebuilt,
        needs=tuple(part.name for part in teachers),
        note=_denoising,
        summary=_denoising,
    )


def report_score_model(
    stored: Stored[UNet], recipe: Recipe | ScoreRecipe, splits: Splits, folder: Path, *, samples: int = SAMPLES
) -> Mapping[str, Any]:
    """Write metrics.json, report.html and its pictures into a folder, unless those of this very score model are there.

    Args:
        stored: The score model.
        recipe: What it was trained by.
        splits: Its data; validation images are shown, the Gaussian is fitted to the training images.
        folder: Where; it is made where it does not exist.
        samples: Images to show.

    Returns:
        The metrics.

    Raises:
        DefendError: If the folder cannot be written.
    """
    from s2ap_train.purifier.score_report import FILES, write_score_report

    known = {
        "format_version": METRICS_VERSION,
        "name": recipe.name,
        "data": splits.name,
        "seed": recipe.seed,
        "score_model": asdict(recipe.score_model),
        "samples": min(samples, len(splits.validation)),
    }
    kept = {key: value for key, value in stored.record.items() if key not in {"key", "weights_sha256"}}
    metrics = {**known, **kept}
    written = json_bytes(metrics, "the metrics of the score model")
    path = folder / METRICS_FILE
    if all((folder / name).exists() for name in FILES) and path.exists() and path.read_bytes() == written:
        return metrics
    shown = torch.from_numpy(splits.validation.images[:samples])
    gaussian = fit_gaussian(torch.from_numpy(splits.train.images))
    write_score_report(folder, metrics, stored.model, gaussian, shown)
    replace_file(path, written)
    return metrics


def _rebuilt(architecture: Mapping[str, Any]) -> UNet:
    return build(architecture).requires_grad_(False)


def _denoising(metrics: Mapping[str, Any]) -> str:
    return f"denoising error {metrics['validation_error']:.3f} of the noise"
