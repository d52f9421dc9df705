"""A classifier that is an ONNX file alone: its graph as a torch module that is attacked and served, not trained."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor, nn

from s2ap_defend.errors import DefendError, RecipeError, first_line
from s2ap_defend.verification.lint import lint_stage
from s2ap_train.models.classifier import Classifier, ImageSize
from s2ap_train.models.logits import Reading, reading_of
from s2ap_train.models.normalisation import Normalisation
from s2ap_train.models.onnx_file import Layout, layout_of, prepared, read_graph, without_ending
from s2ap_train.models.small_cnn import SmallCNN
from s2ap_train.onnx_graphs import ServedStage, TorchStage, UndifferentiableError, torch_stage, with_gradient_of

__all__ = ["NAME", "OnnxNetwork"]

NAME = "onnx"
_TRIED = 2
_FAILURES = (RuntimeError, ValueError, IndexError, TypeError, DefendError)
"""What torch and ONNX Runtime raise where a graph does not take the images."""


class OnnxNetwork(Classifier):
    """The graph of an ONNX file: images [N, C, H, W] in [0, 1] -> logits [N, K].

    Its weights are the file's and stay so. A softmax or sigmoid that it ends with is left out, other probabilities are
    recognised and made logits (`models.logits`); a graph that takes [N, H, W, C] or a fixed number of images is called
    as it wants to be.

    Where an operator has no gradient here, ONNX Runtime answers and the gradient is that of `surrogate`, which is to be
    trained on the graph's labels. Its weights are then the surrogate's, and a digest of the graph.

    Attributes:
        proto: The graph, with one input and one output.
        layout: How it takes images.
        normalisation: What pixels become before it.
        reading: What its outputs become behind it.
        surrogate: Images [N, C, H, W] -> logits [N, K]; None: the graph's own gradients can be had.
    """

    graph_digest: Tensor

    def __init__(
        self,
        file: str,
        in_channels: int = 3,
        classes: int = 10,
        image_size: ImageSize = 32,
        *,
        layout: Layout | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        logits: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        """Read the file and try it.

        Args:
            file: Its path.
            in_channels: Channels C of an image.
            classes: Number of classes K.
            image_size: Side of a square image, or (height, width), pixels.
            layout: "NCHW" or "NHWC"; None: as the graph's input says.
            mean: As of `Normalisation`.
            std: The same.
            logits: How its outputs become logits, the fields of a `Reading`; None: as found.
            seed: Of the surrogate's weights.

        Raises:
            RecipeError: If the file cannot be read or has other inputs, outputs or operators than a classifier of these
                images.
            ValueError: If the images are too small for a surrogate, and one is needed.
        """
        super().__init__(in_channels, classes, image_size)
        self.file = file
        self.normalisation = Normalisation(in_channels, mean, std)
        proto = read_graph(Path(file))
        self.layout: Layout = layout or layout_of(proto, file, self.image_shape)
        self.proto = prepared(proto, file, classes)
        exact = not Reading.of(logits or {}).log  # of one that says so the probabilities themselves are read
        self._ending = without_ending(self.proto) if exact else None
        self._stage, self._lacks = self._made(self.proto)
        own = self._stage.as_parameters() if isinstance(self._stage, TorchStage) else []
        self.weights = nn.ParameterList(own)
        self.surrogate = SmallCNN(in_channels, classes, image_size=image_size, seed=seed) if self._lacks else None
        if self._lacks:
            digest = hashlib.sha256(self.proto.SerializeToString(deterministic=True)).digest()
            self.register_buffer("graph_digest", torch.tensor([*digest], dtype=torch.uint8))
        self.reading = Reading()
        self._check_outputs()
        self.reading = Reading.of(logits) if logits is not None else reading_of(self._tried())

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K] of images [N, C, H, W] in [0, 1]."""
        logits = self.reading(self.unnormalised(self.normalisation(images)))
        if self.surrogate is None or not (images.requires_grad and torch.is_grad_enabled()):
            return logits
        return with_gradient_of(logits, self.surrogate(images))

    def unnormalised(self, images: Tensor) -> Tensor:
        """What the graph itself answers [N, K] to images [N, C, H, W] that were normalised already, or not at all."""
        return self._run(self._stage, images)

    @property
    def without_gradients(self) -> str:
        """What of it has no gradient here, so that those of a surrogate stand in; empty: its gradients are its own."""
        return self._lacks

    @property
    def refused_by_tensorrt(self) -> str:
        """The first node that TensorRT does not take, and why; empty: there is none."""
        return next(iter(lint_stage(self.proto)), "")

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found about it, as sentences."""
        turned = "the graph takes [N, H, W, C]: images are turned for it"
        ending = f"the graph ends in {self._ending}: what goes into it is taken as logits, labels stay as they are"
        blind = (
            f"gradients of the classifier cannot be had: {self._lacks}; attacks on it go by transfer, from a network "
            "that is trained on its labels, and by queries, which find less"
        )
        refused = self.refused_by_tensorrt
        return (
            *([turned] if self.layout == "NHWC" else []),
            *([ending] if self._ending else []),
            *self.reading.notes,
            *([blind] if self._lacks else []),
            *([f"the file will be for ONNX Runtime alone, not for TensorRT: {refused}"] if refused else []),
        )

    def arguments(self) -> dict[str, Any]:
        """Name and arguments that make this network, as JSON values."""
        return {
            "name": NAME,
            "file": self.file,
            "in_channels": self.in_channels,
            "classes": self.classes,
            "image_size": self.recorded_size,
            "layout": self.layout,
            **self.normalisation.arguments(),
            **({"logits": self.reading.changed} if self.reading.changed else {}),
        }

    def _made(self, proto: ModelProto) -> tuple[TorchStage | ServedStage, str]:
        """The graph in torch, or, where torch cannot have it, on ONNX Runtime, and what torch cannot have of it."""
        try:
            stage = torch_stage(proto)
            self._run(stage, self._example())
        except UndifferentiableError as error:
            return self._served(proto), error.what
        except _FAILURES as error:  # if ONNX Runtime does not take the images either, they are at fault
            return self._served(proto), f"its operators fail in torch ({first_line(error)})"
        return stage, ""

    def _served(self, proto: ModelProto) -> ServedStage:
        try:
            return ServedStage(proto)
        except DefendError as error:
            raise RecipeError(f"{self.file}: {error}; export it again") from error

    def _run(self, stage: TorchStage | ServedStage, images: Tensor) -> Tensor:
        (outputs,) = stage(images if self.layout == "NCHW" else images.permute(0, 2, 3, 1))
        return outputs

    def _example(self) -> Tensor:
        return torch.rand(_TRIED, *self.image_shape, generator=torch.Generator().manual_seed(0))

    def _tried(self) -> Tensor:
        with torch.enable_grad():
            return self.unnormalised(self.normalisation(self._example().requires_grad_()))

    def _check_outputs(self) -> None:
        try:
            found = tuple(self._tried().shape)
        except _FAILURES as error:
            raise RecipeError(
                f"{self.file} cannot be run on {_TRIED} images of shape {list(self.image_shape)}: "
                f"{first_line(error)}; export it for images of this size, with a batch of any size (dynamic_axes, or "
                "dynamic_shapes)"
            ) from error
        if found != (_TRIED, self.classes):
            raise RecipeError(
                f"{self.file} answers {list(found)} to {_TRIED} images, expected {[_TRIED, self.classes]}, a column a "
                "class: the data has another number of classes, or the graph another output"
            )
