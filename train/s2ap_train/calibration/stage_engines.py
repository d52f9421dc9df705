"""The stages of a defended model on ONNX Runtime, one session each: what every member says of every image."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from s2ap_defend.decision_record import Purify, Sees
from s2ap_defend.engines import Device
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.model_file import ModelFile
from s2ap_defend.sequential import StageAnswers
from s2ap_defend.stages import CLASSIFIER, PURIFIER, cut_stage, member_scope
from s2ap_defend.types import Float32, Float64, Int64
from s2ap_train.calibration.answers import Answers
from s2ap_train.compute.memory import images_at_once

_ROWS = 256
_TIMED_ROWS = 64
_REPEATS = 5
_ROUNDS = 11


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds of one image in each stage: medians.

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
        purifier: Stage `image` -> `purified`, `reconstruction_error`; None leaves images as they are.
        classifier: Stage `image` -> `log_probabilities`.
        members: Stages `image` -> `log_probabilities`, in order.
        sees: What each member sees; None: all see purified images.
        purify: Which images are purified; under 'suspicious' the classifier is asked about raw images as well.
        device: As for `DefendedClassifier.load`.
        threads: As there.
    """

    def __init__(
        self,
        purifier: ModelProto | None,
        classifier: ModelProto,
        members: Sequence[ModelProto],
        *,
        sees: Sequence[Sees] | None = None,
        purify: Purify = "always",
        device: Device = "cpu",
        threads: int | None = None,
    ) -> None:
        def engine(stage: ModelProto) -> OnnxRuntimeEngine:
            return OnnxRuntimeEngine(stage.SerializeToString(), device=device, threads=threads)

        self._purifier = None if purifier is None else engine(purifier)
        self._classifier = engine(classifier)
        self._members = [engine(member) for member in members]
        self._sees = tuple(sees) if sees is not None else ("purified",) * len(members)
        self._purify = purify

    @classmethod
    def from_file(cls, file: ModelFile, *, device: Device = "cpu", threads: int | None = None) -> "StageEngines":
        """The stages of a model file, members in the order in which they are asked."""
        described = file.manifest.members
        members = [cut_stage(file.proto, member_scope(i)) for i in range(len(described))]
        purifier, classifier = cut_stage(file.proto, PURIFIER), cut_stage(file.proto, CLASSIFIER)
        return cls(
            purifier,
            classifier,
            members,
            sees=[member.sees for member in described],
            purify=file.manifest.decision.purify,
            device=device,
            threads=threads,
        )

    def without(self, *, purifier: bool = False, members: bool = False) -> "StageEngines":
        """The same engines without some of them.

        Args:
            purifier: Leave the purifier out: classifier and members see images as they are.
            members: Leave all members out.
        """
        fewer = copy.copy(self)
        if purifier:
            fewer._purifier, fewer._purify = None, "off"
        if members:
            fewer._members, fewer._sees = [], ()
        return fewer

    def asking(self, members: Sequence[int]) -> "StageEngines":
        """The same engines with the members at these places alone, in this order."""
        fewer = copy.copy(self)
        fewer._members, fewer._sees = [self._members[i] for i in members], tuple(self._sees[i] for i in members)
        return fewer

    def ask(self, images: Float32) -> StageAnswers:
        """What every stage says of images, float32 [N, C, H, W] in [0, 1], N > 0, of the model's shape."""
        size = images_at_once(_ROWS, images.shape)
        return StageAnswers.concatenate([self._ask(images[i : i + size]) for i in range(0, len(images), size)])

    def answers(self, images: Float32, labels: Int64 | None, *, image: Int64 | None = None) -> Answers:
        """What classifier and members say of images, measured against the classifier's own label.

        Args:
            images: As `ask` takes them.
            labels: True labels [N]; None where they are not known: then the answers' are the classifier's.
            image: As in Answers.
        """
        said = self.ask(images)
        own = np.asarray(said.classifier.argmax(axis=1), dtype=np.int64)
        return Answers(said, own, own if labels is None else labels, image)

    def milliseconds(self, images: Float32) -> Float64:
        """Time of one image in each member [n]: the best of five runs on up to 64 images, after one to warm up."""
        purified, _ = self._purified(images[:_TIMED_ROWS])
        times = np.empty((_REPEATS + 1, len(self._members)))
        for repeat in range(_REPEATS + 1):
            for i, member in enumerate(self._members):
                times[repeat, i] = _seconds(member, purified)
        return np.asarray(times[1:].min(axis=0) * 1e3 / len(purified), dtype=np.float64)

    def alone(self, images: Float32) -> StageTimes:
        """Time of one image alone in every stage: the median over up to 64 images of the best of three runs each."""
        rows = [images[i : i + 1] for i in range(min(len(images), _TIMED_ROWS))]
        seen = [self._purified(row)[0] for row in rows]
        classifier, *members = ([_best(engine, row) for row in seen] for engine in (self._classifier, *self._members))
        before = [0.0] if self._purifier is None else [_best(self._purifier, row, "purified") for row in rows]
        milliseconds = [1e3 * float(np.median(seconds)) for seconds in (before, classifier, *members)]
        return StageTimes(milliseconds[0], milliseconds[1], np.array(milliseconds[2:]))

    def together(self, images: Float32) -> StageTimes:
        """Time of one of up to 64 images at once in every stage: the processor's, of engines with one thread."""
        some = images[:_TIMED_ROWS]
        seen, engines = self._purified(some)[0], (self._classifier, *self._members)
        rounds = [
            (
                0.0 if self._purifier is None else _seconds(self._purifier, some, "purified", clock=time.thread_time),
                *(_seconds(engine, seen, clock=time.thread_time) for engine in engines),
            )
            for _ in range(_ROUNDS)
        ]
        purifier, classifier, *members = (1e3 * np.median(rounds, axis=0) / len(some)).tolist()
        return StageTimes(purifier, classifier, np.array(members, dtype=np.float64))

    def _purified(self, images: Float32) -> tuple[Float32, Float32]:
        """(purified images, their reconstruction errors [N]): the images and 0 without a purifier."""
        if self._purifier is None:
            return images, np.zeros(len(images), dtype=np.float32)
        purified, error = self._purifier.run({"image": images}, ["purified", "reconstruction_error"])
        return np.asarray(purified, dtype=np.float32), np.asarray(error, dtype=np.float32)

    def _ask(self, images: Float32) -> StageAnswers:
        purified, error = self._purified(images)

        def said(engine: OnnxRuntimeEngine, seen: Float32) -> Float32:
            return np.asarray(engine.run({"image": seen}, ["log_probabilities"])[0], dtype=np.float32)

        classifier = said(self._classifier, purified)
        wired = zip(self._members, self._sees, strict=True)
        asked = [said(engine, purified if sees == "purified" else images) for engine, sees in wired]
        nobody = np.empty((0, *classifier.shape), dtype=np.float32)
        on_raw = said(self._classifier, images) if self._purify == "suspicious" else None
        return StageAnswers(classifier, np.stack(asked) if asked else nobody, on_raw, error)


def _best(engine: OnnxRuntimeEngine, image: Float32, output: str = "log_probabilities") -> float:
    """The best of three runs, in seconds: other processes can only make a run longer."""
    return min(_seconds(engine, image, output) for _ in range(3))


def _seconds(
    engine: OnnxRuntimeEngine,
    images: Float32,
    output: str = "log_probabilities",
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    began = clock()
    engine.run({"image": images}, [output])
    return clock() - began
