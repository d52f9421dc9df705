"""Everything that a pruning run knows and measures, on test images that nothing was chosen by."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from s2ap_defend.progress import Reporter
from s2ap_train.data import ImageSet, Splits
from s2ap_train.measures.autoattack import autoattack
from s2ap_train.measures.benchmark import Benchmark, BenchmarkAttack, before_after, measure_benchmark
from s2ap_train.measures.quantisation import int8_twin, quantisation_error
from s2ap_train.measures.sanity import sanity_checks
from s2ap_train.measures.sensitivity import sensitivity
from s2ap_train.measures.transferability import transferability
from s2ap_train.models import Classifier
from s2ap_train.models.cost import flops, parameter_count
from s2ap_train.pruning import Tuned
from s2ap_train.pruning.methods import base_name, method_name, structure_name
from s2ap_train.pruning.pruned_model import PrunedModel
from s2ap_train.pruning.score_surface import score_surface
from s2ap_train.pruning.scores import weight_counts
from s2ap_train.pruning.sharpness import largest_eigenvalue, mask_sharpness
from s2ap_train.pruning.structures import structure_of
from s2ap_train.recipe import PruningRecipe
from s2ap_train.training import adversarial_examples

T = TypeVar("T")
ATTACK = "PGD, cross-entropy and margin, worst case of all restarts, with FGSM"
_CURVATURES = ("hessian_eigenvalue", "hessian_eigenvalue_relative")


@dataclass(frozen=True)
class Timings:
    """Seconds of the phases; None = it did not run."""

    pretrain: float | None
    search: float | None
    finetune: float | None


def run_facts(
    recipe: PruningRecipe, splits: Splits, tuned: Tuned, timings: Timings, *, collapse: str | None
) -> dict[str, Any]:
    """What is known of a run without measuring its network.

    Args:
        recipe: What was asked for.
        splits: For the name of the data and the shape of an image.
        tuned: The pruned network.
        timings: Of the phases.
        collapse: What collapsed, if anything did.

    Returns:
        JSON values; see docs/s2ap.md.
    """
    pruned = tuned.pruned
    _, weights = weight_counts(_whole(pruned))
    left, _ = weight_counts(tuned.model)
    history = [record for record in pruned.history if "flip_rate" in record]
    moves = [record for record in pruned.history if "hamming" in record and "flip_to_previous" in record]
    return {
        "name": recipe.name,
        "method": method_name(recipe.pruning),
        "base": base_name(recipe.pruning),
        "structure": structure_name(recipe.pruning),
        "seed": recipe.seed,
        "data": splits.name,
        "model": recipe.model if isinstance(recipe.model, str) else recipe.model.get("name"),
        "target_sparsity": recipe.pruning.sparsity,
        "sparsity": 1.0 - left / weights,
        "flip_rate": _mean([record["flip_rate"] for record in history if record["radius"]]),
        "radius": history[-1]["radius"] if history else None,
        "seconds_pretrain": timings.pretrain,
        "seconds_mask_search": timings.search,
        "seconds_finetune": timings.finetune,
        "parameters": parameter_count(tuned.model),
        "flops": flops(tuned.model, splits.image_shape),
        "flops_dense": flops(_whole(pruned), splits.image_shape),
        "stability": {
            "hamming_between_epochs": [record["hamming"] for record in moves],
            "flip_between_epochs": [record["flip_to_previous"] for record in moves],
        },
        "collapse": collapse,
        "history": {
            "prune": list(pruned.history),
            "finetune": [] if tuned.tuning is None else list(tuned.tuning.history),
            "best_epoch": pruned.best_epoch,
        },
    }


def run_measures(
    recipe: PruningRecipe, splits: Splits, dense: Classifier | None, tuned: Tuned, reporter: Reporter
) -> dict[str, Any]:
    """Measure the dense network, the mask before fine-tuning, and the network that is shipped, all alike.

    What is measured besides accuracy is left out, with the reason, where a network does not allow it.

    Args:
        recipe: What was asked for.
        splits: Test images for accuracy, validation images for sharpness, calibration images for INT8.
        dense: The network before pruning; None for a method that starts from random weights.
        tuned: The pruned network.
        reporter: Shows every measure.

    Returns:
        JSON values; see docs/s2ap.md.
    """
    settings, pruned = recipe.measures, tuned.pruned
    images = splits.test.subset(slice(0, settings.samples))
    attack = BenchmarkAttack(recipe.eps, settings.steps, settings.restarts, seed=recipe.seed)
    allowed = _Allowed()
    with reporter.step("measures", 7) as step:
        before = None if dense is None else _benchmark("dense", dense, images, attack)
        step.advance("dense" if before is None else f"dense {_share(before)}")
        mask = _benchmark("mask", pruned.model, images, attack)
        step.advance(f"mask {_share(mask)}")
        after = _benchmark("pruned", tuned.model, images, attack)
        step.advance(f"pruned {_share(after)}")
        surface = _surface_measures(recipe, pruned, splits, allowed)
        step.advance(f"pruned {_share(after)}")
        carried = gradients = hardest = None
        if settings.transferability:
            carried = allowed("transferability", lambda: _transferability(recipe, dense, tuned.model, splits, images))
        step.advance(f"pruned {_share(after)}")
        if settings.sensitivity:
            gradients = allowed("sensitivity", lambda: _sensitivity(recipe, tuned.model, images))
        step.advance(f"pruned {_share(after)}")
        if settings.autoattack:
            hardest = allowed("autoattack", lambda: _autoattack(recipe, tuned.model, splits))
        step.advance(f"pruned {_share(after)}")
    return {
        "clean_accuracy": after.clean_accuracy,
        "robust_accuracy": after.robust_accuracy,
        "mask_clean_accuracy": mask.clean_accuracy,
        "mask_robust_accuracy": mask.robust_accuracy,
        **surface,
        "attack": {
            "name": ATTACK,
            "eps": recipe.eps,
            "steps": attack.steps,
            "restarts": attack.restarts,
            "samples": after.samples,
            "split": "test",
            "seed": attack.seed,
        },
        "before": None if before is None else before.to_json(),
        "mask": mask.to_json(),
        "after": after.to_json(),
        "difference": None
        if before is None
        else {name: difference.to_json() for name, difference in before_after(before, after).items()},
        "transferability": carried,
        "sensitivity": gradients,
        "autoattack": hardest,
        "left_out": allowed.left_out,
    }


class _Allowed:
    """Measures what a network allows; `left_out` says by name why something is missing."""

    def __init__(self) -> None:
        self.left_out: dict[str, str] = {}

    def __call__(self, name: str, measure: Callable[[], T]) -> T | None:
        """The measure, or None where the network does not allow it."""
        try:
            return measure()
        except Exception as error:  # whatever the network's own operators do not support
            reason = str(error).strip().split("\n")[0]
            self.left_out[name] = f"{type(error).__name__}: {reason}"
            return None


def _benchmark(name: str, model: nn.Module, data: ImageSet, attack: BenchmarkAttack) -> Benchmark:
    return measure_benchmark(
        model,
        data.images,
        data.labels,
        eps=attack.eps,
        seed=attack.seed,
        steps=attack.steps,
        restarts=attack.restarts,
        name=name,
    )


def _surface_measures(
    recipe: PruningRecipe, pruned: PrunedModel, splits: Splits, allowed: _Allowed
) -> dict[str, float | None]:
    """Sharpness and curvature around the scores, on attacked validation images; None where there are no scores."""
    if pruned.searched is None or not pruned.scores:
        return dict.fromkeys(("sharpness", *_CURVATURES))
    settings, config = recipe.measures, recipe.finetune
    part = splits.validation.subset(slice(0, settings.sharpness_samples))
    device = next(pruned.model.parameters()).device
    x, y = torch.from_numpy(part.images).to(device), torch.from_numpy(part.labels).to(device)
    generator = torch.Generator().manual_seed(recipe.seed)
    attacked = adversarial_examples(pruned.model, x, y, eps=recipe.eps, config=config, generator=generator)
    structure = structure_of(structure_name(recipe.pruning), pruned.searched, splits.image_shape)
    surface = score_surface(pruned, structure, attacked, y)

    def sharpness() -> float:
        return mask_sharpness(surface, pruned.scores, radius=settings.sharpness_radius, generator=generator)

    def curvature(relative: bool) -> float:
        return largest_eigenvalue(
            surface,
            pruned.scores,
            generator=torch.Generator().manual_seed(recipe.seed),
            iterations=settings.curvature_iterations,
            relative=relative,
        )

    measured = {"sharpness": allowed("sharpness", sharpness)}
    return measured | {name: allowed(name, partial(curvature, name == _CURVATURES[1])) for name in _CURVATURES}


def _transferability(
    recipe: PruningRecipe, dense: Classifier | None, shipped: nn.Module, splits: Splits, images: ImageSet
) -> dict[str, Any]:
    """Attacks carried between the dense, the pruned and the INT8 network, and what INT8 changes."""
    quantised = int8_twin(shipped, splits.calibration.images)
    models = {"pruned": shipped, "int8": quantised} | ({} if dense is None else {"dense": dense})
    settings = recipe.measures
    matrix = transferability(
        models, images.images, images.labels, eps=recipe.eps, steps=settings.steps, seed=recipe.seed
    )
    error = quantisation_error(shipped, quantised, images.images)
    return {**matrix.to_json(), "int8": error.to_json()}


def _sensitivity(recipe: PruningRecipe, shipped: nn.Module, images: ImageSet) -> dict[str, Any]:
    """Input gradients of the shipped network, and whether the attack that judges it is sane."""
    measured = sensitivity(shipped, images.images, images.labels, eps=recipe.eps, seed=recipe.seed)
    checks = sanity_checks(shipped, images.images, images.labels, eps=recipe.eps, seed=recipe.seed)
    return {**measured.to_json(), "checks": [check.to_json() for check in checks]}


def _autoattack(recipe: PruningRecipe, shipped: nn.Module, splits: Splits) -> dict[str, Any]:
    images = splits.test.subset(slice(0, recipe.measures.autoattack))
    return autoattack(shipped, images.images, images.labels, eps=recipe.eps, seed=recipe.seed).to_json()


def _whole(pruned: PrunedModel) -> nn.Module:
    return pruned.model if pruned.searched is None else pruned.searched


def _share(benchmark: Benchmark) -> str:
    return f"{benchmark.clean_accuracy:.1%} clean, {benchmark.robust_accuracy:.1%} attacked"


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None
