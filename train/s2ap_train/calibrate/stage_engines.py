"""The stages of a defended model on ONNX Runtime, one session each: what every member says of every image."""

import time
from collections.abc import Sequence

import numpy as np
from onnx import ModelProto

from s2ap_defend.engines.onnxruntime import Device, OnnxRuntimeEngine
from s2ap_defend.model_file import ModelFile
from s2ap_defend.stages import CLASSIFIER, PURIFIER, cut_stage, member_scope
from s2ap_defend.types import Float32, Float64, Int64
from s2ap_train.calibrate.answers import Answers

_ROWS = 256
_TIMED_ROWS = 64
_REPEATS = 5


class StageEngines:
    """Purifier, classifier and members, run one after the other on all images.

    The whole file asks members only as long as it must; calibration wants to know what all of them would have said,
    from the engine, device and precision that serve.

    Args:
        purifier: Stage `image` -> `purified`.
        classifier: Stage `image` -> `log_probabilities`.
        members: Stages `image` -> `log_probabilities`.
        device: 'auto', 'cpu', 'cuda' or 'tensorrt'.

    Raises:
        EngineError: If the device cannot be used.
        ModelFileError: If a stage cannot be loaded.
    """

    def __init__(
        self, purifier: ModelProto, classifier: ModelProto, members: Sequence[ModelProto], *, device: Device = "cpu"
    ) -> None:
        self._purifier, self._classifier, *self._members = (
            OnnxRuntimeEngine(stage.SerializeToString(), device=device) for stage in (purifier, classifier, *members)
        )

    @classmethod
    def from_file(cls, file: ModelFile, *, device: Device = "cpu") -> "StageEngines":
        """The stages of a model file, members in the order in which they are asked."""
        members = [cut_stage(file.proto, member_scope(i)) for i in range(len(file.manifest.members))]
        return cls(cut_stage(file.proto, PURIFIER), cut_stage(file.proto, CLASSIFIER), members, device=device)

    def answers(self, images: Float32, labels: Int64 | None, *, image: Int64 | None = None) -> Answers:
        """What classifier and members say of purified images.

        Args:
            images: float32 [N, C, H, W] in [0, 1], N > 0, of the model's shape.
            labels: True labels [N]; None where they are not known: then the answers' are the base labels.
            image: As in Answers.
        """
        parts = [self._ask(images[start : start + _ROWS]) for start in range(0, len(images), _ROWS)]
        base_label = np.concatenate([base for base, _ in parts])
        asked = np.concatenate([answers for _, answers in parts], axis=1)
        return Answers(asked, base_label, base_label if labels is None else labels, image)

    def milliseconds(self, images: Float32) -> Float64:
        """Time of one image in each member [n]: the median of five runs on up to 64 images, after one to warm up."""
        (purified,) = self._purifier.run({"image": images[:_TIMED_ROWS]}, ["purified"])
        times = np.empty((_REPEATS + 1, len(self._members)))
        for repeat in range(_REPEATS + 1):
            for i, member in enumerate(self._members):
                start = time.perf_counter()
                member.run({"image": purified}, ["log_probabilities"])
                times[repeat, i] = time.perf_counter() - start
        return np.asarray(np.median(times[1:], axis=0) * 1e3 / len(purified), dtype=np.float64)

    def _ask(self, images: Float32) -> tuple[Int64, Float32]:
        (purified,) = self._purifier.run({"image": images}, ["purified"])
        (log_probabilities,) = self._classifier.run({"image": purified}, ["log_probabilities"])
        asked = [engine.run({"image": purified}, ["log_probabilities"])[0] for engine in self._members]
        return log_probabilities.argmax(axis=1), np.stack(asked)
