"""Every attack on one purifier in front of one classifier, and what each left of the accuracy."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from purification_variants import Preset
from torch import Tensor

from s2ap_defend.types import Bool, Float32, Int64
from s2ap_train.adaptive import AdaptiveBudget
from s2ap_train.adaptive.objectives import classifier_objective, targeted_agreement_objective
from s2ap_train.adaptive.purified import variant_view
from s2ap_train.adaptive.search import Descent, View, adaptive_attack
from s2ap_train.adaptive.systems import never_flagged, score_of
from s2ap_train.attacks.budget import project
from s2ap_train.attacks.square import square_search
from s2ap_train.data import ImageSet
from s2ap_train.measures.autoattack import Loss, apgd
from s2ap_train.purifier.gradient_path import GradientPath
from s2ap_train.purifier.variants import Variant
from s2ap_train.statistics.outcome import Outcome

GRADIENT: Mapping[str, tuple[GradientPath, str, str]] = {
    "bpda": ("identity", "margin", "random"),
    "unrolled": ("exact", "cross_entropy", "random"),
    "straight-through": ("straight_through", "margin", "random"),
    "surrogate": ("surrogate", "margin", "random"),
}
"""Attack: how its gradient passes the purifier, what it lowers, where it begins."""

ATTACKS = ("clean", "oblivious", *GRADIENT, "apgd", "square", "transfer")
"""In the order of the tables; 'clean' is no attack, 'transfer' reads what the attacks on others made."""

WHITE_BOX = (*GRADIENT, "apgd")
"""Those that differentiate something."""

VOTES = 25
"""Draws that a purifier with noise is judged by, the same in every judgement: a label is what most of them say."""
_BATCH = 128


class PurifiedSystem:
    """The label behind a purifier.

    Args:
        make: Makes the purifier; one with noise begins with the same noise each time.
        classify: Images [N, C, H, W] -> logits [N, K].
    """

    def __init__(self, make: Callable[[], Variant], classify: Callable[[Tensor], Tensor]) -> None:
        self._make, self._classify, self._asked = make, classify, make()

    def __call__(self, images: Float32, labels: Int64) -> Outcome:
        """Outcome as attacks ask for it; of a purifier with noise from the mean log-probability of fresh draws."""
        return never_flagged(np.mean(self._answers(self._asked, images), axis=0, dtype=np.float32), labels)

    def right(self, images: Float32, labels: Int64) -> Bool:
        """Images whose label is right [N]; of a purifier with noise, in most of the draws that judge every attack."""
        votes = np.mean([answer.argmax(1) == labels for answer in self._answers(self._make(), images)], axis=0)
        return np.asarray(votes > 0.5)

    def _answers(self, variant: Variant, images: Float32) -> list[Float32]:
        """Log-probabilities [N, K] of every draw."""
        parts = torch.from_numpy(images).split(_BATCH)
        with torch.no_grad():
            return [
                torch.cat([self._classify(variant.purify(part)).log_softmax(1) for part in parts]).numpy()
                for _ in range(VOTES if variant.stochastic else 1)
            ]


@dataclass(frozen=True)
class Attacked:
    """What the attacks on one system made.

    Attributes:
        right: By attack: images that it left right [N].
        images: By attack: what it made [N, C, H, W].
        seconds: By attack.
        worst: For each image one that broke the system, or the unrolled attack's where none did [N, C, H, W].
    """

    right: dict[str, Bool]
    images: dict[str, Float32]
    seconds: dict[str, float]
    worst: Float32


@dataclass(frozen=True)
class Attacker:
    """The attacks on one system, all from scratch, each on every image.

    Attributes:
        make: Makes the purifier.
        classify: The classifier behind it.
        data: Clean images and labels.
        eps: l_inf budget, pixels in [0, 1].
        seed: Of all attacks.
        preset: Their sizes.
    """

    make: Callable[[], Variant]
    classify: Callable[[Tensor], Tensor]
    data: ImageSet
    eps: float
    seed: int
    preset: Preset

    @cached_property
    def system(self) -> PurifiedSystem:
        """What is attacked."""
        return PurifiedSystem(self.make, self.classify)

    def run(self, oblivious: Float32) -> Attacked:
        """All attacks but transfer.

        Square gets what the gradient attacks left; everything where no network purifies: there it shows what it finds
        by itself.

        Args:
            oblivious: Images that PGD made on the bare classifier [N, C, H, W].
        """
        labels = self.data.labels
        made: dict[str, Callable[[], Float32]] = {
            "clean": lambda: self.data.images,
            "oblivious": lambda: oblivious,
            **{name: lambda name=name: self.gradient(name) for name in GRADIENT},
            "apgd": self.apgd,
        }
        images, right, seconds = {}, {}, {}
        for name, attack in made.items():
            began = time.perf_counter()
            images[name] = project(attack(), self.data.images, self.eps)
            seconds[name] = time.perf_counter() - began
            right[name] = self.system.right(images[name], labels)
        worst = images["unrolled"].copy()
        for name in reversed(images):
            worst[~right[name]] = images[name][~right[name]]
        began = time.perf_counter()
        left = self.system.right(worst, labels)
        rows = np.arange(len(labels)) if self.make().work == 0 else np.flatnonzero(left)
        images["square"] = worst.copy()
        if len(rows):
            images["square"][rows] = project(self._square(rows), self.data.images[rows], self.eps)
        right["square"] = self.system.right(images["square"], labels)
        seconds["square"] = time.perf_counter() - began
        broken = left & ~right["square"]
        worst[broken] = images["square"][broken]
        return Attacked(right, images, seconds, worst)

    def random_noise(self, draws: int = 10) -> Bool:
        """Images that stay right under noise from the corners of the ball, without any search [N]."""
        random = np.random.default_rng(self.seed)
        right = np.ones(len(self.data), dtype=bool)
        for _ in range(draws):
            signs = random.choice(np.array([-self.eps, self.eps], dtype=np.float32), self.data.images.shape)
            right &= self.system.right(project(self.data.images + signs, self.data.images, self.eps), self.data.labels)
        return right

    def gradient(self, name: str, *, steps: int | None = None) -> Float32:
        """One descent of Auto-PGD's kind [N, C, H, W]; what succeeded on the system on its way is kept."""
        path, kind, start = GRADIENT[name]
        objective = classifier_objective(kind)  # type: ignore[arg-type]
        return self._descend([Descent(objective, path, start)], steps)  # type: ignore[arg-type]

    def union(self, *, steps: int | None = None) -> Bool:
        """Images that stay right under five descents in turn: every path, and one towards the likeliest wrong label."""
        margin, towards = classifier_objective("margin"), targeted_agreement_objective()
        plan = [
            Descent(margin, "straight_through", "random"),
            Descent(margin, "exact", "best"),
            Descent(margin, "identity", "best"),
            Descent(margin, "surrogate", "best"),
            Descent(towards, "exact", "random", target=0),
        ]
        images, labels = self._descend(plan, steps), self.data.labels
        return self.system.right(images, labels) & self.system.right(self.data.images, labels)

    def _square(self, rows: Int64) -> Float32:
        images, labels = self.data.images[rows], self.data.labels[rows]
        score = score_of(self.system)
        return square_search(score, images, labels, eps=self.eps, queries=self.preset.queries, seed=self.seed)

    def apgd(self) -> Float32:
        """The library's APGD-CE, then APGD-DLR on what is left, through the exact gradient [N, C, H, W]."""
        view = self._view()
        system, labels = self.system, self.data.labels
        found = self.data.images.copy()
        left = np.flatnonzero(system.right(found, labels))
        losses: tuple[Loss, ...] = ("ce", "dlr")
        for loss in losses:
            found[left] = apgd(
                lambda x: view(x, "exact", 0)[0],
                self.data.images[left],
                labels[left],
                loss=loss,
                eps=self.eps,
                seed=self.seed,
                iterations=self.preset.steps,
                restarts=self.preset.restarts,
                batch_size=_BATCH,
            )
            left = left[system.right(found[left], labels[left])] if len(left) else left
        return found

    def _descend(self, plan: list[Descent], steps: int | None) -> Float32:
        preset = self.preset
        budget = AdaptiveBudget(
            steps=steps or preset.steps,
            cheap_steps=steps or preset.cheap_steps,
            restarts=preset.restarts,
            batch=_BATCH,
        )
        result = adaptive_attack(
            self.system, self._view(), plan, self.data, eps=self.eps, budget=budget, seed=self.seed
        )
        return result.images

    def _view(self) -> View:
        return variant_view(self.make(), self.classify, draws=self.preset.draws)
