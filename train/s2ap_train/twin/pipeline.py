"""The whole defended pipeline in torch, made from the file alone."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.model_file import ModelFile
from s2ap_defend.sequential import SequentialOutcome, SequentialTest, run_sequential_test
from s2ap_defend.stages import CLASSIFIER, PURIFIER, cut_stage, member_scope
from s2ap_defend.types import Float32
from s2ap_train.twin.onnx_module import torch_stage

Gradient = Literal["exact", "straight_through", "identity"]


class Twin:
    """Purifier, classifier and members of a defended model file as differentiable functions.

    All images are [N, C, H, W] in [0, 1]. Values equal those of the file up to float32 rounding; a bin edge or a
    near-tie that lies within rounding of a score can therefore fall on the other side.

    Attributes:
        test: The sequential test of the file.
        device: Where the twin computes.
    """

    def __init__(
        self,
        *,
        purifier: Callable[[Tensor], tuple[Tensor, ...]],
        clamp_free_purifier: Callable[[Tensor], tuple[Tensor, ...]],
        classifier: Callable[[Tensor], tuple[Tensor, ...]],
        members: tuple[Callable[[Tensor], tuple[Tensor, ...]], ...],
        test: SequentialTest,
        device: torch.device,
    ) -> None:
        self._purifier = purifier
        self._clamp_free_purifier = clamp_free_purifier
        self._classifier = classifier
        self._members = members
        self.test = test
        self.device = device

    @classmethod
    def from_file(
        cls, file: ModelFile, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> "Twin":
        """Build the twin of an opened file.

        Args:
            file: As `s2ap_defend.model_file.open_model_file` returns it.
            device: Where to compute.
            dtype: torch.float32 as in the file, or torch.float64.

        Raises:
            ModelFileError: If a stage is missing or holds an operator that the twin does not know.
        """
        purifier = cut_stage(file.proto, PURIFIER)
        members = [cut_stage(file.proto, member_scope(i)) for i in range(len(file.manifest.members))]
        return cls(
            purifier=torch_stage(purifier, device, dtype=dtype),
            clamp_free_purifier=torch_stage(purifier, device, dtype=dtype, straight_through_clip=True),
            classifier=torch_stage(cut_stage(file.proto, CLASSIFIER), device, dtype=dtype),
            members=tuple(torch_stage(member, device, dtype=dtype) for member in members),
            test=file.manifest.test.to_test(),
            device=torch.device(device),
        )

    @property
    def member_count(self) -> int:
        """Number of members n."""
        return len(self._members)

    def purify(self, images: Tensor, gradient: Gradient = "exact") -> Tensor:
        """Purified images.

        Args:
            images: Images [N, C, H, W].
            gradient: What flows back: the 'exact' gradient of all unrolled steps; 'straight_through', the same but
                past clamps with constant bounds; 'identity', as if the purifier were not there (backward pass
                differentiable approximation, Athalye et al. 2018, arXiv 1802.00420). Values are the same.
        """
        if gradient == "identity":
            with torch.no_grad():
                purified = self._purifier(images)[0]
            return purified.detach() + (images - images.detach())
        return (self._purifier if gradient == "exact" else self._clamp_free_purifier)(images)[0]

    def classify(self, purified: Tensor) -> Tensor:
        """Log-probabilities of the classifier on images as it sees them [N, K]."""
        return self._classifier(purified)[0]

    def members(self, purified: Tensor, count: int | None = None) -> Tensor:
        """Log-probabilities of the first `count` members, all by default, in the order they are asked [n, N, K]."""
        return torch.stack([member(purified)[0] for member in self._members[:count]])

    def verdicts(self, images: Float32) -> SequentialOutcome:
        """What the file decides on images, by the numpy reference of the sequential test on the twin's answers."""
        with torch.no_grad():
            x = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
            purified = self.purify(x)
            base_label = self.classify(purified).argmax(dim=1).cpu().numpy()
            answers = self.members(purified).float().cpu().numpy()
        return run_sequential_test(self.test, answers, base_label)
