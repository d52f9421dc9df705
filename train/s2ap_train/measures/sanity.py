"""Checks that an attack's figures can be believed: symptoms of gradient masking, each with what it means.

The symptoms of Athalye et al. 2018 (arXiv 1802.00420, section 3.1) and of Carlini et al. 2019 (arXiv 1902.06705,
section 5). A network that fails one is not shown to be broken; its white-box robust accuracy is shown to be no
measure of robustness. One that passes all may still be masked: these are symptoms, not a proof.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Bool
from s2ap_train.attacks.accuracy import Array, on_device
from s2ap_train.attacks.pgd import Objective, cross_entropy_sum, margin_sum, pgd
from s2ap_train.attacks.right_images import in_batches
from s2ap_train.attacks.square import margin_score, square_search
from s2ap_train.measures.predictions import Model, batches_of
from s2ap_train.measures.sensitivity import connected, input_gradients
from s2ap_train.models.modes import device_of, evaluation_mode
from s2ap_train.statistics.paired import not_weaker

LARGEST_DROP = 0.1
"""Share of its total rise that the loss of PGD may fall back: its last steps circle the maximum."""
ZERO_GRADIENT_IMAGES = 0.05
"""Share of images that may have no gradient at all."""
_BATCH = 256


@dataclass(frozen=True)
class Check:
    """One sanity check.

    Attributes:
        name: Short name.
        passed: Whether the symptom is absent.
        found: The measured values that decided.
        meaning: What passing says, or what failing means.
    """

    name: str
    passed: bool
    found: Mapping[str, float]
    meaning: str

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class SanityBudget:
    """Work of the checks.

    Attributes:
        steps: Steps of the shorter PGD; the longer one takes `longer` times as many.
        longer: See `steps`.
        queries: Queries per image of Square.
        noise: Random points of the ball per image.
    """

    steps: int = 10
    longer: int = 4
    queries: int = 200
    noise: int = 50

    def __post_init__(self) -> None:
        """Refuse a budget without work.

        Raises:
            RecipeError: If a count is too small to compare anything.
        """
        if self.steps < 2 or self.longer < 2 or min(self.queries, self.noise) < 1:
            raise RecipeError(f"{self} compares nothing; steps and longer start at 2, queries and noise at 1")


def sanity_checks(
    model: Model, images: Array, labels: Array, *, eps: float, seed: int = 0, budget: SanityBudget | None = None
) -> tuple[Check, ...]:
    """Look for symptoms of gradient masking in a network at an l_inf radius.

    Args:
        model: The network, as a white-box attacker sees it.
        images: float32 [N, C, H, W] in [0, 1]; 100 or more, or the comparisons have no power.
        labels: int64 [N].
        eps: Radius whose robust accuracy is to be believed, pixels, below 0.5.
        seed: Of all random starts and searches.
        budget: Work.

    Raises:
        RecipeError: If there are no images, or eps is not in (0, 0.5).
    """
    if len(images) == 0 or not 0 < eps < 0.5:
        raise RecipeError(
            f"sanity checks need images and eps above 0, below 0.5; found {len(images)} images and eps {eps}"
        )
    budget = budget or SanityBudget()
    x, y = on_device(device_of(model), images, labels)
    with evaluation_mode(model):
        bench = _Bench(connected(model), x, y, seed)
        short = bench.after_pgd(eps, budget.steps)
        long = bench.after_pgd(eps, budget.steps * budget.longer)
        half, double = bench.after_pgd(eps / 2, budget.steps), bench.after_pgd(2 * eps, budget.steps)
        whole_box = bench.after_pgd(1.0, budget.steps * budget.longer)
        white_box = short & long & bench.after_pgd(eps, budget.steps * budget.longer, margin_sum)
        return (
            _gradients_exist(bench),
            _loss_rises(bench, eps, budget.steps),
            _not_weaker(
                "more steps", {"pgd": short, "pgd, more steps": long}, "the attack's gradients lead nowhere: masking"
            ),
            _not_weaker("larger eps", {"half eps": half, "eps": short}, "a larger ball holds the smaller: masking"),
            _not_weaker(
                "doubled eps", {"eps": short, "double eps": double}, "a larger ball holds the smaller: masking"
            ),
            _whole_box(bench, whole_box),
            _not_weaker(
                "random noise",
                {"noise": bench.after_noise(eps, budget.noise), "white box": white_box},
                "points drawn at random are worse than those that the gradient found: masking",
            ),
            _not_weaker(
                "black box",
                {"square": bench.after_square(eps, budget.queries), "white box": white_box},
                "queries without gradients find more than gradients do: masking",
            ),
        )


class _Bench:
    """A network on fixed images: which of them it has right (bool [N]) after an attack."""

    def __init__(self, model: Model, x: Tensor, y: Tensor, seed: int) -> None:
        self.model, self.x, self.y, self._seed = model, x, y, seed

    def batches(self) -> zip[tuple[Tensor, Tensor]]:
        return zip(batches_of(self.x, _BATCH), batches_of(self.y, _BATCH), strict=True)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed)

    def right(self, attacked: Tensor) -> Bool:
        right: Bool = (in_batches(self.model, attacked, _BATCH).argmax(1) == self.y).cpu().numpy()
        return right

    def after_pgd(self, eps: float, steps: int, objective: Objective = cross_entropy_sum) -> Bool:
        """Right before and after PGD."""
        generator, clean = self.generator(), self.right(self.x)
        attacked = [
            pgd(
                self.model,
                x,
                y,
                eps=eps,
                steps=steps,
                step_size=2.5 * eps / steps,
                generator=generator,
                objective=objective,
            )
            for x, y in self.batches()
        ]
        return clean & self.right(torch.cat(attacked))

    def after_noise(self, eps: float, points: int) -> Bool:
        """Right on the image and on every one of these random points of the ball."""
        generator, right = self.generator(), self.right(self.x)
        for _ in range(points):
            noise = torch.rand(self.x.shape, generator=generator).to(self.x)
            right &= self.right((self.x + eps * (2 * noise - 1)).clamp(0, 1))
        return right

    def after_square(self, eps: float, queries: int) -> Bool:
        """Right before and after a search of square patches that sees logits only."""
        images, labels = self.x.cpu().numpy(), self.y.cpu().numpy()
        score = margin_score(self.model, batch_size=_BATCH)
        found = square_search(score, images, labels, eps=eps, queries=queries, seed=self._seed, batch_size=_BATCH)
        return self.right(torch.from_numpy(found).to(self.x))


def _gradients_exist(bench: _Bench) -> Check:
    gone = torch.cat([(input_gradients(bench.model, x, y) == 0).flatten(1).all(1) for x, y in bench.batches()])
    share = float(gone.double().mean())
    return Check(
        name="gradients exist",
        passed=share <= ZERO_GRADIENT_IMAGES,
        found={"images_without_gradient": share},
        meaning="nearly every image has an input gradient"
        if share <= ZERO_GRADIENT_IMAGES
        else "images have a gradient of exactly 0 and no first-order attack can move them: rounding or saturation",
    )


def _loss_rises(bench: _Bench, eps: float, steps: int) -> Check:
    """Mean loss after 0, 1, ... steps of one run of PGD from the image: no drop beyond a share of the total rise."""
    losses = torch.zeros(steps + 1, dtype=torch.float64)
    for x, y in bench.batches():
        seen: list[float] = []

        def recorded(attacked: Tensor, y: Tensor = y, seen: list[float] = seen) -> Tensor:
            logits = bench.model(attacked)
            seen.append(float(cross_entropy(logits.detach().double(), y, reduction="sum")))
            return logits

        end = pgd(recorded, x, y, eps=eps, steps=steps, step_size=2.5 * eps / steps, random_start=False)
        with torch.no_grad():
            recorded(end)
        losses += torch.tensor(seen, dtype=torch.float64) / len(bench.x)
    rise = float(losses.max() - losses[0])
    drop = float((losses.cummax(0).values - losses).max())
    passed = rise > 0 and drop <= LARGEST_DROP * rise
    return Check(
        name="loss rises",
        passed=passed,
        found={"first": float(losses[0]), "last": float(losses[-1]), "rise": rise, "largest_drop": drop},
        meaning="PGD raises the loss step by step"
        if passed
        else "the loss does not rise along its own gradient: the gradient is wrong, random or 0, or the step too long",
    )


def _not_weaker(name: str, right: Mapping[str, Bool], failure: str) -> Check:
    """Whether the second attack breaks at least as many images as the first, which it must, beyond chance."""
    weak, strong = right
    passed, found = not_weaker(right)
    return Check(
        name=name,
        passed=passed,
        found=found,
        meaning=f"'{strong}' breaks no fewer images than '{weak}', as it must" if passed else failure,
    )


def _whole_box(bench: _Bench, right: Bool) -> Check:
    """With eps 1 any image is allowed: what is still right must not exceed chance."""
    with torch.no_grad():
        classes = bench.model(bench.x[:1]).shape[1]
    chance = 1 / classes
    allowed = chance + 3 * (chance * (1 - chance) / len(right)) ** 0.5
    passed = float(np.mean(right)) <= allowed
    return Check(
        name="unbounded eps",
        passed=passed,
        found={"accuracy": float(np.mean(right)), "chance_and_three_standard_errors": allowed},
        meaning="an attack that may draw any image succeeds"
        if passed
        else "even an attack that may draw any image fails: it is the attack that is broken, by masking or a bug",
    )
