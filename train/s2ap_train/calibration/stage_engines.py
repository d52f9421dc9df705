"""The stages of a defended model on ONNX Runtime, one session each: what every member says of every image."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from s2ap_defend.engines import Device
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.model_file import ModelFile
from s2ap_defend.stages import CLASSIFIER, PURIFIER, cut_stage, member_scope
from s2ap_defend.types import Float32, Float64, Int64
from s2ap_train.calibration.answers import Answers

_ROWS = 256
_TIMED_ROWS = 64
_REPEATS = 5


@dataclass(frozen=True)
class Said:
    """What the stages say of N images.

    Attributes:
        purified: Images as classifier and members see them [N, C, H, W].
        classifier: Its log-probabilities [N, K].
        members: Log-probabilities of all members [n, N, K]; n may be 0.
    """

    purified: Float32
    classifier: Float32
    members: Float32


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds of one image alone in each stage, a batch of 1: medians.

    Attributes:
        purifier: 0 where there is none.
        classifier: Of the classifier.
        members: Of each member [n].
    """

    purifier: float
    classifier: float
    members: Float64


class StageEngines:
    """Purifier, classifier and members, run one after the other on all images.

    The whole file asks members only as long as it must; calibration and ablations want to know what all of them would
    have said, from the engine, device and precision that serve.

    Args:
        purifier: Stage `image` -> `purified`; None leaves images as they are.
        classifier: Stage `image` -> `log_probabilities`.
        members: Stages `image` -> `log_probabilities`.
        device: 'auto', 'cpu', 'cuda' or 'tensorrt'.
        threads: Of each engine; None leaves the choice to it.

    Raises:
        EngineError: If the device cannot be used.
        ModelFileError: If a stage cannot be loaded.
    """

    def __init__(
        self,
        purifier: ModelProto | None,
        classifier: ModelProto,
        members: Sequence[ModelProto],
        *,
        device: Device = "cpu",
        threads: int | None = None,
    ) -> None:
        def engine(stage: ModelProto) -> OnnxRuntimeEngine:
            return OnnxRuntimeEngine(stage.SerializeToString(), device=device, threads=threads)

        self._purifier = None if purifier is None else engine(purifier)
        self._classifier = engine(classifier)
        self._members = [engine(member) for member in members]

    @classmethod
    def from_file(cls, file: ModelFile, *, device: Device = "cpu", threads: int | None = None) -> "StageEngines":
        """The stages of a model file, members in the order in which they are asked."""
        members = [cut_stage(file.proto, member_scope(i)) for i in range(len(file.manifest.members))]
        purifier, classifier = cut_stage(file.proto, PURIFIER), cut_stage(file.proto, CLASSIFIER)
        return cls(purifier, classifier, members, device=device, threads=threads)

    def without(self, *, purifier: bool = False, members: bool = False) -> "StageEngines":
        """The same engines without some of them.

        Args:
            purifier: Leave the purifier out: classifier and members see images as they are.
            members: Leave all members out.
        """
        fewer = copy.copy(self)
        fewer._purifier = None if purifier else self._purifier
        fewer._members = [] if members else self._members
        return fewer

    def ask(self, images: Float32) -> Said:
        """What every stage says of images, float32 [N, C, H, W] in [0, 1], N > 0, of the model's shape."""
        parts = [self._ask(images[start : start + _ROWS]) for start in range(0, len(images), _ROWS)]
        return Said(
            np.concatenate([part.purified for part in parts]),
            np.concatenate([part.classifier for part in parts]),
            np.concatenate([part.members for part in parts], axis=1),
        )

    def answers(self, images: Float32, labels: Int64 | None, *, image: Int64 | None = None) -> Answers:
        """What classifier and members say of purified images.

        Args:
            images: As `ask` takes them.
            labels: True labels [N]; None where they are not known: then the answers' are the base labels.
            image: As in Answers.
        """
        said = self.ask(images)
        base_label = said.classifier.argmax(axis=1)
        return Answers(said.members, base_label, base_label if labels is None else labels, image)

    def milliseconds(self, images: Float32) -> Float64:
        """Time of one image in each member [n]: the median of five runs on up to 64 images, after one to warm up."""
        purified = self._purified(images[:_TIMED_ROWS])
        times = np.empty((_REPEATS + 1, len(self._members)))
        for repeat in range(_REPEATS + 1):
            for i, member in enumerate(self._members):
                times[repeat, i] = _seconds(member, purified)
        return np.asarray(np.median(times[1:], axis=0) * 1e3 / len(purified), dtype=np.float64)

    def alone(self, images: Float32) -> StageTimes:
        """Time of one image alone in every stage: the median over up to 64 images of the best of three runs each."""
        rows = [images[i : i + 1] for i in range(min(len(images), _TIMED_ROWS))]
        seen = [self._purified(row) for row in rows]
        classifier, *members = ([_best(engine, row) for row in seen] for engine in (self._classifier, *self._members))
        before = [0.0] if self._purifier is None else [_best(self._purifier, row, "purified") for row in rows]
        milliseconds = [1e3 * float(np.median(seconds)) for seconds in (before, classifier, *members)]
        return StageTimes(milliseconds[0], milliseconds[1], np.array(milliseconds[2:]))

    def _purified(self, images: Float32) -> Float32:
        if self._purifier is None:
            return images
        (purified,) = self._purifier.run({"image": images}, ["purified"])
        return np.asarray(purified, dtype=np.float32)

    def _ask(self, images: Float32) -> Said:
        purified = self._purified(images)
        (log_probabilities,) = self._classifier.run({"image": purified}, ["log_probabilities"])
        asked = [engine.run({"image": purified}, ["log_probabilities"])[0] for engine in self._members]
        nobody = np.empty((0, *log_probabilities.shape), dtype=np.float32)
        return Said(purified, log_probabilities, np.stack(asked) if asked else nobody)


def _best(engine: OnnxRuntimeEngine, image: Float32, output: str = "log_probabilities") -> float:
    """The best of three runs, in seconds: other processes can only make a run longer."""
    return min(_seconds(engine, image, output) for _ in range(3))


def _seconds(engine: OnnxRuntimeEngine, images: Float32, output: str = "log_probabilities") -> float:
    began = time.perf_counter()
    engine.run({"image": images}, [output])
    return time.perf_counter() - began
