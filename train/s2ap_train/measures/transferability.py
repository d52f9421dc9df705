"""Do adversarial examples of one network fool another? Dense, pruned and quantised versions of a network, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Int64
from s2ap_train.attacks.accuracy import Array, on_device
from s2ap_train.attacks.pgd import pgd
from s2ap_train.measures.predictions import Model, batches_of, predictions
from s2ap_train.models.modes import device_of, evaluation_mode

_BATCH = 256


@dataclass(frozen=True)
class Transferability:
    """Success on model j of examples made on model i.

    Attributes:
        names: The models, in the order of rows (source i) and columns (target j).
        samples: Images that i and j both classify correctly, int64 [M, M]; only these count.
        successes: Of them, images whose example made on i is misclassified by j, int64 [M, M]. The diagonal is the
            white-box attack on i itself.
        eps: Radius of the attack, pixels.
        steps: Its steps.
        step_size: Length of a step, pixels.
        seed: Of the random starts, the same for every source.
    """

    names: tuple[str, ...]
    samples: Int64
    successes: Int64
    eps: float
    steps: int
    step_size: float
    seed: int

    def rate(self, source: str, target: str) -> float | None:
        """Success rate on `target` of examples made on `source`; None where they have no correct image in common."""
        i, j = self.names.index(source), self.names.index(target)
        return int(self.successes[i, j]) / int(self.samples[i, j]) if self.samples[i, j] else None

    def to_json(self) -> dict[str, Any]:
        """Names, attack, and rates with their counts (rows: source), as JSON values; a rate of nothing is null."""
        return {
            "models": list(self.names),
            "attack": {
                "name": "pgd",
                "eps": self.eps,
                "steps": self.steps,
                "step_size": self.step_size,
                "seed": self.seed,
            },
            "rate": [[self.rate(i, j) for j in self.names] for i in self.names],
            "successes": self.successes.tolist(),
            "samples": self.samples.tolist(),
        }


def transferability(
    models: Mapping[str, Model],
    images: Array,
    labels: Array,
    *,
    eps: float,
    steps: int = 20,
    step_size: float | None = None,
    seed: int = 0,
    batch_size: int = _BATCH,
) -> Transferability:
    """Attack every model with PGD and judge the examples by every model.

    Untargeted examples of each model (Madry et al. 2018), counted over the images that source and target both classify
    correctly, as in Demontis et al. 2019 (arXiv 1809.02861): a target's own mistakes are no transfer. All sources start
    from the same random points.

    Args:
        models: By name; images [N, C, H, W] in [0, 1] -> logits [N, K], differentiable. Modules are put into evaluation
            mode meanwhile.
        images: float32 [N, C, H, W] in [0, 1].
        labels: int64 [N].
        eps: Radius, pixels.
        steps: Gradient steps.
        step_size: Length of a step, pixels; None = 2.5 eps / steps.
        seed: Of the random starts.
        batch_size: Images attacked at once.

    Raises:
        RecipeError: If there is no model or no image, or eps is not positive.
    """
    if not models or len(images) == 0 or eps <= 0 or steps < 1:
        raise RecipeError(
            f"transferability needs models, images, eps above 0 and steps from 1; found {len(models)} models, "
            f"{len(images)} images, eps {eps} and {steps} steps"
        )
    length = 2.5 * eps / steps if step_size is None else step_size
    y = torch.as_tensor(labels).cpu()
    right: dict[str, Tensor] = {}
    fooled: dict[tuple[str, str], Tensor] = {}
    for source, model in models.items():
        right[source] = predictions(model, images, batch_size=batch_size) == y
        examples = _examples(model, images, labels, eps=eps, steps=steps, length=length, seed=seed, batch=batch_size)
        for target, judge in models.items():
            fooled[source, target] = predictions(judge, examples, batch_size=batch_size) != y
    names = tuple(models)
    common = [[right[i] & right[j] for j in names] for i in names]
    return Transferability(
        names=names,
        samples=np.array([[int(both.sum()) for both in row] for row in common], dtype=np.int64),
        successes=np.array(
            [[int((common[i][j] & fooled[a, b]).sum()) for j, b in enumerate(names)] for i, a in enumerate(names)],
            dtype=np.int64,
        ),
        eps=eps,
        steps=steps,
        step_size=length,
        seed=seed,
    )


def _examples(
    model: Model,
    images: Array,
    labels: Array,
    *,
    eps: float,
    steps: int,
    length: float,
    seed: int,
    batch: int,
) -> Tensor:
    all_images, all_labels = on_device(device_of(model), images, labels)
    generator = torch.Generator().manual_seed(seed)
    with evaluation_mode(model):
        return torch.cat(
            [
                pgd(model, x, y, eps=eps, steps=steps, step_size=length, generator=generator).cpu()
                for x, y in zip(batches_of(all_images, batch), batches_of(all_labels, batch), strict=True)
            ]
        )
