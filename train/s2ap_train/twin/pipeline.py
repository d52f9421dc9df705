"""The whole defended pipeline in torch, made from the file alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor

from s2ap_defend.decision_record import Purify, Sees
from s2ap_defend.model_file import ModelFile
from s2ap_defend.sequential import SequentialOutcome, SequentialTest, StageAnswers, run_sequential_test
from s2ap_defend.stages import CLASSIFIER, PURIFIER, cut_stage, member_scope
from s2ap_defend.types import Float32
from s2ap_train.attacks.joint import jury_network
from s2ap_train.onnx_graphs import ServedStage, TorchStage, UndifferentiableError, torch_stage, with_gradient_of
from s2ap_train.onnx_graphs.hidden import hidden_stage
from s2ap_train.purifier.gradient_path import GradientPath, purified

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

    Where an operator of the classifier has no gradient here, ONNX Runtime answers in its place, and the gradient is
    that of the members' mean probability, what the file has of networks trained on the same images.

    Args:
        purifier: Images -> purified images, their reconstruction errors.
        clamp_free_purifier: The same values; clamps with constant bounds pass gradients on.
        classifier: What it sees -> log-probabilities.
        members: The same, in the order in which they are asked.
        test: The decision.
        device: Where to compute.
        hidden: What the classifier sees -> its hidden features.
        sees: What each member sees; None: all see purified images.
        purify: Which images are purified.

    Attributes:
        test: The decision of the file.
        device: Where the twin computes.
        purify_which: Which images are purified; under 'suspicious' what is accepted in the opening is not, and the
            classifier's answers here are those on purified images.
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
        sees: Sequence[Sees] | None = None,
        purify: Purify = "always",
    ) -> None:
        self._purifier = purifier
        self._clamp_free_purifier = clamp_free_purifier
        self._classifier = classifier
        self._members = members
        self._hidden = hidden
        self._sees = tuple(sees) if sees is not None else ("purified",) * len(members)
        self.purify_which: Purify = purify
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
            ModelFileError: If a stage is missing, or another than the classifier holds an operator that the twin does
                not know.
        """
        purifier = cut_stage(file.proto, PURIFIER)
        classifier = cut_stage(file.proto, CLASSIFIER)
        members = [cut_stage(file.proto, member_scope(i)) for i in range(len(file.manifest.members))]
        if segments is None:
            whole = torch_stage(purifier, device, dtype=dtype)
            large = kept_bytes(whole, file.manifest.input.shape, torch.device(device)) * _BATCH > UNCUT_BYTES
            about = file.manifest.purifier
            segments = max(1, about.steps * (2 if about.rho else 1)) if large else 1
        asked = tuple(torch_stage(member, device, dtype=dtype) for member in members)
        answer, blind = _classifier(classifier, asked, device, dtype)
        return cls(
            purifier=torch_stage(purifier, device, dtype=dtype, segments=segments),
            clamp_free_purifier=torch_stage(purifier, device, dtype=dtype, straight_through=True, segments=segments),
            classifier=answer,
            hidden=None if blind else torch_stage(hidden_stage(classifier), device, dtype=dtype),
            members=asked,
            test=file.manifest.to_test(),
            device=torch.device(device),
            sees=[member.sees for member in file.manifest.members],
            purify=file.manifest.decision.purify,
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

    @property
    def has_features(self) -> bool:
        """Whether hidden features of the classifier can be had."""
        return self._hidden is not None

    def classify(self, purified: Tensor) -> Tensor:
        """Log-probabilities of the classifier on images as it sees them [N, K]."""
        return self._classifier(purified)[0]

    def features(self, purified: Tensor) -> Tensor:
        """Hidden features of the classifier, what its last layer of weights reads, on images as it sees them [N, D].

        Raises:
            ValueError: If the twin was made without them; one made of a file has them where the classifier has a
                gradient of its own.
        """
        if self._hidden is None:
            raise ValueError("this twin was made without the hidden stage of its classifier")
        return self._hidden(purified)[0].flatten(1)

    def members(self, images: Tensor, count: int | None = None, *, purified: Tensor | None = None) -> Tensor:
        """Log-probabilities of the first `count` members, all by default, in the order they are asked [n, N, K].

        Args:
            images: Images as they came; what sees them raw gets these, so that its gradient passes no purifier.
            count: How many are asked.
            purified: The images behind the purifier; None: as they came.
        """
        behind = images if purified is None else purified
        asked = zip(self._members[:count], self._sees[:count], strict=True)
        return torch.stack([member(behind if sees == "purified" else images)[0] for member, sees in asked])

    def answers(
        self, images: Tensor, path: GradientPath = "exact", count: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(log-probabilities of the classifier [N, K], those of the first members [n, N, K]), one purification for all.

        Args:
            images: Images as they came.
            path: How gradients pass the purifier: see `purified`.
            count: How many members are asked, all by default; 0 asks none, and their answers are None.
        """
        purified = self.purify(images, path)
        return self.classify(purified), None if count == 0 else self.members(images, count, purified=purified)

    def without_purifier(self) -> Twin:
        """The same where classifier and members see the image as it is."""
        alone = copy.copy(self)
        alone._purifier = alone._clamp_free_purifier = lambda images: (images, images.new_zeros(len(images)))
        alone.purify_which = "off"
        return alone

    def verdicts(self, images: Float32) -> SequentialOutcome:
        """What the file decides on images, by the numpy reference of its decision on the twin's answers."""
        return run_sequential_test(self.test, self.stage_answers(images))

    def stage_answers(self, images: Float32) -> StageAnswers:
        """What every stage says of images [N, C, H, W], as the numpy reference takes it."""
        with torch.no_grad():
            x = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
            purified, error = self._purifier(x)
            said = self.classify(purified), self.members(x, purified=purified), error
            classifier, members, errors = (one.float().cpu().numpy() for one in said)
            suspicious = self.purify_which == "suspicious"
            on_raw = self.classify(x).float().cpu().numpy() if suspicious else None
        return StageAnswers(classifier, members, on_raw, errors)


def _classifier(
    stage: ModelProto, members: Sequence[Stage], device: torch.device | str, dtype: torch.dtype
) -> tuple[Stage, bool]:
    """The classifier, and whether its gradients are those of the members, together, as its own cannot be had."""
    try:
        return torch_stage(stage, device, dtype=dtype), False
    except UndifferentiableError:
        served = ServedStage(stage)

    def answer(images: Tensor) -> tuple[Tensor, ...]:
        (values,) = served(images.float())
        values = values.to(dtype)
        if not (images.requires_grad and torch.is_grad_enabled()):
            return (values,)
        together = jury_network([lambda x, member=member: member(x)[0] for member in members])  # type: ignore[misc]
        return (with_gradient_of(values, together(images)),)

    return answer, True


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
