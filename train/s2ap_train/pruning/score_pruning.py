"""Settings that every score-based method shares, and what a method adds: a network, and how much each layer keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_train.pruning.allocation import Allocation, UniformKeep
from s2ap_train.pruning.s2ap import S2AP
from s2ap_train.pruning.scores import ScoreStart
from s2ap_train.pruning.structures import Structure, StructureName
from s2ap_train.training import TrainingConfig

_UNUSED = ("weight_radius", "average_decay", "eps_warmup_epochs", "label_smoothing", "patience")


@dataclass(frozen=True)
class ScorePruning:
    """A mask search of scores over frozen weights, with the same share removed everywhere; methods extend it.

    Attributes:
        sparsity: Share to remove: of every layer's weights, or of every group's channels.
        structure: What a score stands for.
        score_start: How scores begin.
        recalibrate: Whether batch-normalisation statistics are measured again, on clean training images and with the
            mask of the epoch, before an epoch is judged; otherwise they are the running ones of training.
        training: Epochs, learning rate and decay of the scores, and the attack.
        s2ap: Trains the scores at their worst neighbours; None, or radius 0, is the plain method, bit for bit.
    """

    sparsity: float = 0.8
    structure: StructureName = "unstructured"
    score_start: ScoreStart = "scaled_magnitude"
    recalibrate: bool = False
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=6))
    s2ap: S2AP | None = None

    same_share: ClassVar[bool] = True
    """Whether every layer or group keeps the same share, so that the shape is known before the search."""
    trains_affine: ClassVar[bool] = True
    """Whether the affine part of batch normalisation is trained next to the scores."""
    starts_trained: ClassVar[bool] = True
    """Whether the network that is searched was trained: a fall from the first mask's accuracy is then a collapse."""

    def __post_init__(self) -> None:
        """Refuse what a mask search cannot do.

        Raises:
            RecipeError: If the sparsity is not in [0, 1), 2:4 is asked for another share than half, or the training
                asks for something that has no meaning while weights are frozen.
        """
        if not 0 <= self.sparsity < 1:
            raise RecipeError(
                f"sparsity is {self.sparsity}; it is the fraction that is removed, at least 0 and below 1"
            )
        if self.structure == "2:4" and self.sparsity != 0.5:
            raise RecipeError(f"2:4 removes exactly half of the weights; sparsity is {self.sparsity}, set it to 0.5")
        if any(getattr(self.training, name) for name in _UNUSED):
            raise RecipeError(
                f"a mask search does not use {', '.join(_UNUSED)}; set them to 0 here, they belong to fine-tuning"
            )

    def network(self, model: nn.Module, *, seed: int) -> nn.Module:  # noqa: ARG002
        """The network to search in: the given one."""
        return model

    def allocation(
        self,
        structure: Structure,
        model: nn.Module,  # noqa: ARG002
        image_shape: tuple[int, int, int],  # noqa: ARG002
        names: Sequence[str],  # noqa: ARG002
    ) -> Allocation:
        """How much each layer or group keeps: the same share."""
        return UniformKeep(structure, 1 - self.sparsity)
