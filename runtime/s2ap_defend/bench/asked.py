"""Which images each stage is asked about: the file's decision, made by the numpy reference from its own stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from s2ap_defend.decision_record import Sees
from s2ap_defend.engines import Device, Engine
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.manifest import Manifest
from s2ap_defend.model_file import ModelFile
from s2ap_defend.sequential import StageAnswers, accepted_raw, run_sequential_test
from s2ap_defend.stages import CLASSIFIER, CLASSIFIER_AGAIN, PURIFIER, cut_stage, member_scope, wave_sizes
from s2ap_defend.types import Bool, Float32

_AT_ONCE = 64
SAID = ("log_probabilities",)
_PURIFIED = ("purified", "reconstruction_error")


@dataclass(frozen=True)
class Run:
    """One stage and what it is asked about.

    Attributes:
        scope: Its name in the file; that of the classifier's second run is CLASSIFIER_AGAIN.
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
    """The stages of a file, cut and started.

    Attributes:
        manifest: Of the file.
        engines: By scope, in the order in which they run; no purifier where it is off.
    """

    manifest: Manifest
    engines: Mapping[str, Engine]

    @classmethod
    def start(cls, file: ModelFile, device: Device, threads: int | None) -> "Stages":
        """Cut all stages and start an engine of each.

        Raises:
            EngineError: If the device cannot be used.
        """
        scopes = [CLASSIFIER, *map(member_scope, range(len(file.manifest.members)))]
        if not file.manifest.purifier.off:
            scopes.insert(0, PURIFIER)
        cut = {scope: cut_stage(file.proto, scope).SerializeToString() for scope in scopes}
        return cls(
            file.manifest,
            {scope: OnnxRuntimeEngine(stage, device=device, threads=threads) for scope, stage in cut.items()},
        )

    def runs(self, images: Float32) -> list[Run]:
        """Every stage with the images that it is asked about, in the order of the graph.

        A member is asked about what waits for any member of its wave, as in the file: who waits for one of them goes
        through all. What is purified only where it is suspicious is what the opening does not accept.
        """
        manifest, test = self.manifest, self.manifest.to_test()
        everyone, purify = np.ones(len(images), dtype=np.bool_), manifest.decision.purify
        seen: dict[Sees, Float32] = {"raw": images, "purified": images}
        error = None
        if PURIFIER in self.engines:
            seen["purified"], error = _in_parts(self.engines[PURIFIER], images, _PURIFIED)
        sees = [member.sees for member in manifest.members]
        said = StageAnswers(
            classifier=self._says(CLASSIFIER, seen["purified"]),
            members=np.stack([self._says(member_scope(i), seen[eye]) for i, eye in enumerate(sees)]),
            on_raw=self._says(CLASSIFIER, images) if purify == "suspicious" else None,
            reconstruction_error=error,
        )
        asked = run_sequential_test(test, said).asked
        suspicious = everyone if purify == "always" else ~accepted_raw(test, said)

        def run(scope: str, eye: Sees, rows: Bool, engine: str = "") -> Run:
            outputs = _PURIFIED if scope == PURIFIER else SAID
            return Run(scope, self.engines[engine or scope], outputs, seen[eye], rows)

        waves = np.split(np.arange(test.members), np.cumsum(wave_sizes(test, purify))[:-1])
        members = [
            run(member_scope(i), sees[i], np.asarray(asked[:, wave].any(axis=1)))
            for wave in waves
            for i in wave.tolist()
        ]
        if purify == "suspicious":
            again = run(CLASSIFIER_AGAIN, "purified", suspicious, CLASSIFIER)
            opening, later = members[: test.opening], members[test.opening :]
            return [run(CLASSIFIER, "raw", everyone), *opening, run(PURIFIER, "raw", suspicious), again, *later]
        purifier = [run(PURIFIER, "raw", everyone)] if PURIFIER in self.engines else []
        return [*purifier, run(CLASSIFIER, "purified", everyone), *members]

    def _says(self, scope: str, images: Float32) -> Float32:
        return np.asarray(_in_parts(self.engines[scope], images, SAID)[0])


def _in_parts(engine: Engine, images: Float32, outputs: Sequence[str]) -> list[np.ndarray]:
    parts = [
        engine.run({"image": images[start : start + _AT_ONCE]}, outputs) for start in range(0, len(images), _AT_ONCE)
    ]
    return [np.concatenate(found) for found in zip(*parts, strict=True)]
