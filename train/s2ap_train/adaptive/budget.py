"""How much work the attacks that adapt to what they attack may do."""

from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["AdaptiveBudget", "Gradients"]

Gradients = Literal["float32", "bfloat16"]
"""What the convolutions and products of an attack's gradients are computed in."""


@dataclass(frozen=True)
class AdaptiveBudget:
    """Work of the attacks that adapt to what they attack.

    Attributes:
        steps: Gradient steps of one descent through the purifier.
        cheap_steps: Gradient steps of one descent that does not differentiate the purifier.
        restarts: How often the whole plan is run, each time from other random starts.
        targets: Wrong labels that are tried per sample, likeliest first; `for_classes` has no more than there are.
        thorough: Run every descent of the plan; otherwise only those that have broken most per second.
        check_every: Steps between checks on the system itself.
        batch: Images differentiated at once; memory grows with it.
        square_queries: Queries of the Square attack per image.
        decision_queries: Queries per image of attacks that see decisions only.
        gradients: What the descents' convolutions compute in; what an image does is asked of the system itself.
    """

    steps: int = 50
    cheap_steps: int = 50
    restarts: int = 3
    targets: int = 3
    thorough: bool = True
    check_every: int = 5
    batch: int = 256
    square_queries: int = 1000
    decision_queries: int = 1000
    gradients: Gradients = "float32"

    def __post_init__(self) -> None:
        if min(self.steps, self.cheap_steps, self.restarts, self.targets, self.check_every, self.batch) < 1:
            raise ValueError(f"every number of an attack budget must be positive, got {self}")

    @classmethod
    def quick(cls) -> "AdaptiveBudget":
        """Enough for a demonstration and for tests; figures for a release need more."""
        return cls(
            steps=20, cheap_steps=30, restarts=1, targets=2, thorough=False, square_queries=150, decision_queries=300
        )

    @classmethod
    def standard(cls) -> "AdaptiveBudget":
        """The budget of figures that are quoted: long descents of every kind, once each."""
        return cls(restarts=1, decision_queries=500)

    @classmethod
    def full(cls) -> "AdaptiveBudget":
        """The budget of a release, for hours or a GPU."""
        return cls(steps=100, cheap_steps=100, restarts=5, targets=9, square_queries=5000, decision_queries=10000)

    @classmethod
    def named(cls, name: Literal["quick", "standard", "full"]) -> "AdaptiveBudget":
        """The preset of that name."""
        return {"quick": cls.quick, "standard": cls.standard, "full": cls.full}[name]()

    def for_classes(self, classes: int) -> "AdaptiveBudget":
        """The same budget with no more targets than `classes` have wrong labels: none is aimed at twice."""
        return replace(self, targets=min(self.targets, classes - 1))
