"""The whole defended pipeline in torch, made from the file alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.model_file import ModelFile
from s2ap_defend.sequential import SequentialOutcome, SequentialTest, run_sequential_test
from s2ap_defend.stages import CLASSIFIER, PURIFIER, cut_stage, member_scope
from s2ap_defend.types import Float32
from s2ap_train.purifier.gradient_path import GradientPath, purified
from s2ap_train.twin.hidden import hidden_stage
from s2ap_train.twin.onnx_module import TorchStage, torch_stage

__all__ = ["UNCUT_BYTES", "Twin", "kept_bytes"]

Stage = Callable[[Tensor], tuple[Tensor, ...]]
UNCUT_BYTES = 2 << 30
"""What the backward pass through the purifier may keep for a batch of 256 images before it is cut into segments.

Cut where the score model begins, the purifier of the digits recipe keeps a sixth (33 MB instead of 204 MB for 60
images) and takes 1.35 times as long: worth it where memory is short, and only there.
"""
_BATCH = 256


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
        purifier: Stage,
        clamp_free_purifier: Stage,
        classifier: Stage,
        members: tuple[Stage, ...],
        test: SequentialTest,
        device: torch.device,
        hidden: Stage | None = None,
    ) -> None:
        self._purifier = purifier
        self._clamp_free_purifier = clamp_free_purifier
        self._classifier = classifier
        self._members = members
        self._hidden = hidden
        self.test = test
        self.device = device

    @classmethod
    def from_file(
        cls,
        file: ModelFile,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        segments: int | None = None,
    ) -> Twin:
        """Build the twin of an opened file.

        Args:
            file: As `s2ap_defend.model_file.open_model_file` returns it.
            device: Where to compute.
            dtype: torch.float32 as in the file, or torch.float64.
            segments: How many the purifier is cut into; the backward pass keeps what lies between them and computes the
                rest again; see `torch_stage`. None decides by `UNCUT_BYTES`: 1, or one for each time that the purifier
                asks its score model.

        Raises:
            ModelFileError: If a stage is missing or holds an operator that the twin does not know.
        """
        purifier = cut_stage(file.proto, PURIFIER)
        classifier = cut_stage(file.proto, CLASSIFIER)
        members = [cut_stage(file.proto, member_scope(i)) for i in range(len(file.manifest.members))]
        if segments is None:
            whole = torch_stage(purifier, device, dtype=dtype)
            large = kept_bytes(whole, file.manifest.input.shape, torch.device(device)) * _BATCH > UNCUT_BYTES
            about = file.manifest.purifier
            segments = max(1, about.steps * (2 if about.rho else 1)) if large else 1
        return cls(
            purifier=torch_stage(purifier, device, dtype=dtype, segments=segments),
            clamp_free_purifier=torch_stage(purifier, device, dtype=dtype, straight_through=True, segments=segments),
            classifier=torch_stage(classifier, device, dtype=dtype),
            hidden=torch_stage(hidden_stage(classifier), device, dtype=dtype),
            members=tuple(torch_stage(member, device, dtype=dtype) for member in members),
            test=file.manifest.test.to_test(),
            device=torch.device(device),
        )

    @property
    def member_count(self) -> int:
        """Number of members n."""
        return len(self._members)

    def purify(self, images: Tensor, path: GradientPath = "exact") -> Tensor:
        """Purified images [N, C, H, W], with the gradient of a path: see `purified`.

        Past clamps means: past those with constant bounds.

        Raises:
            ValueError: For the path 'surrogate': a file holds no J-free form of its purifier.
        """
        return purified(
            images,
            path,
            exact=lambda x: self._purifier(x)[0],
            straight_through=lambda x: self._clamp_free_purifier(x)[0],
            surrogate=None,
        )

    def classify(self, purified: Tensor) -> Tensor:
        """Log-probabilities of the classifier on images as it sees them [N, K]."""
        return self._classifier(purified)[0]

    def features(self, purified: Tensor) -> Tensor:
        """Hidden features of the classifier, what its last layer of weights reads, on images as it sees them [N, D].

        Raises:
            ValueError: If the twin was made without them; one made of a file has them.
        """
        if self._hidden is None:
            raise ValueError("this twin was made without the hidden stage of its classifier")
        return self._hidden(purified)[0].flatten(1)

    def members(self, purified: Tensor, count: int | None = None) -> Tensor:
        """Log-probabilities of the first `count` members, all by default, in the order they are asked [n, N, K]."""
        return torch.stack([member(purified)[0] for member in self._members[:count]])

    def without_purifier(self) -> Twin:
        """The same where classifier and members see the image as it is."""
        alone = copy.copy(self)
        alone._purifier = alone._clamp_free_purifier = lambda images: (images,)
        return alone

    def verdicts(self, images: Float32) -> SequentialOutcome:
        """What the file decides on images, by the numpy reference of the sequential test on the twin's answers."""
        with torch.no_grad():
            x = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
            purified = self.purify(x)
            base_label = self.classify(purified).argmax(dim=1).cpu().numpy()
            answers = self.members(purified).float().cpu().numpy()
        return run_sequential_test(self.test, answers, base_label)


def kept_bytes(stage: TorchStage, image_shape: tuple[int, int, int], device: torch.device) -> int:
    """Bytes that the backward pass through a stage keeps for one image more, what is shared by all left out."""
    counts = []
    for images in (1, 2):
        count = 0

        def keep(value: Tensor) -> Tensor:
            nonlocal count
            count += value.nbytes
            return value

        x = torch.full((images, *image_shape), 0.5, dtype=stage.dtype, device=device, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            stage(x)
        counts.append(count)
    return counts[1] - counts[0]
