"""Which images each stage is asked about: the file's decision, made from the answers of its stages."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from s2ap_defend.decision_record import Sees
from s2ap_defend.engines import Device, Engine
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.manifest import Manifest
from s2ap_defend.model_file import ModelFile
from s2ap_defend.sequential import Path
from s2ap_defend.stages import CLASSIFIER, CLASSIFIER_AGAIN, PURIFIER, cut_stage, member_scope, wave_sizes
from s2ap_defend.types import Bool, Float32

_AT_ONCE = 64
SAID = ("log_probabilities",)
_PURIFIED = ("purified", "reconstruction_error")


@dataclass(frozen=True)
class Run:
    """One stage and what it is asked about.

    Attributes:
        scope: Its name in the file.
        engine: Its engine, alone.
        outputs: What it answers.
        images: What it sees of every image of the traffic [N, C, H, W].
        rows: Which of them it is asked about [N].
    """

    scope: str
    engine: Engine
    outputs: Sequence[str]
    images: Float32
    rows: Bool


@dataclass(frozen=True)
class Stages:
    """The stages of a file, each on an engine of its own.

    Attributes:
        manifest: Of the file.
        engines: By scope.
    """

    manifest: Manifest
    engines: Mapping[str, Engine]

    @classmethod
    def start(cls, file: ModelFile, cut: Mapping[str, ModelProto], device: Device, threads: int | None) -> "Stages":
        """Start an engine of each stage of `cut_stages`.

        Raises:
            EngineError: If the device cannot be used.
        """
        engines = {
            scope: OnnxRuntimeEngine(stage.SerializeToString(), device=device, threads=threads)
            for scope, stage in cut.items()
        }
        return cls(file.manifest, engines)

    def runs(self, images: Float32) -> list[Run]:
        """Every stage with the images that it is asked about, in the order of the graph.

        A member is asked about what waits for any member of its wave, as in the file: who waits for one of them goes
        through all. What is purified only where it is suspicious is what the opening does not accept.
        """
        manifest, test = self.manifest, self.manifest.to_test()
        everyone, suspicious = np.ones((2, len(images)), dtype=np.bool_)
        seen: dict[Sees, Float32] = {"raw": images, "purified": images}
        error = None
        if PURIFIER in self.engines:
            seen["purified"], error = _in_parts(self.engines[PURIFIER], images, _PURIFIED)
        sees = [member.sees for member in manifest.members]
        logs = np.stack([self._says(member_scope(i), seen[eye]) for i, eye in enumerate(sees)])
        opening = logs[: test.opening]
        first = self._run(CLASSIFIER, seen["purified"], everyone)
        between: list[Run] = []
        if CLASSIFIER_AGAIN in self.engines:
            first = self._run(CLASSIFIER, images, everyone)
            path = Path(test, self._says(CLASSIFIER, images), opening)
            path.scan(0, opening)
            suspicious = ~path.decided | path.adversarial
            again = self._run(CLASSIFIER_AGAIN, seen["purified"], suspicious)
            between = [self._run(PURIFIER, images, suspicious), again]
        path = Path(test, self._says(CLASSIFIER, seen["purified"]), opening, reconstruction_error=error)
        members = []
        for wave in _waves(wave_sizes(test, manifest.decision.purify)):
            rows = suspicious & path.waits(wave.start, len(wave)) if wave.start else everyone
            path.scan(wave.start, logs[wave.start : wave.stop])
            members += [self._run(member_scope(i), seen[sees[i]], rows) for i in wave]
        if between:
            return [first, *members[: test.opening], *between, *members[test.opening :]]
        purifier = [self._run(PURIFIER, images, everyone)] if PURIFIER in self.engines else []
        return [*purifier, first, *members]

    def _run(self, scope: str, images: Float32, rows: Bool) -> Run:
        return Run(scope, self.engines[scope], _PURIFIED if scope == PURIFIER else SAID, images, rows)

    def _says(self, scope: str, images: Float32) -> Float32:
        return np.asarray(_in_parts(self.engines[scope], images, SAID)[0])


def cut_stages(file: ModelFile) -> dict[str, ModelProto]:
    """The stages of a file by scope; no purifier where it is off."""
    purify = file.manifest.decision.purify
    scopes = [CLASSIFIER, *map(member_scope, range(len(file.manifest.members)))]
    scopes += {"always": [PURIFIER], "suspicious": [PURIFIER, CLASSIFIER_AGAIN], "off": []}[purify]
    return {scope: cut_stage(file.proto, scope) for scope in scopes}


def _waves(sizes: Sequence[int]) -> Iterator[range]:
    start = 0
    for size in sizes:
        yield range(start, start + size)
        start += size


def _in_parts(engine: Engine, images: Float32, outputs: Sequence[str]) -> list[np.ndarray]:
    parts = [
        engine.run({"image": images[start : start + _AT_ONCE]}, outputs) for start in range(0, len(images), _AT_ONCE)
    ]
    return [np.concatenate(found) for found in zip(*parts, strict=True)]
