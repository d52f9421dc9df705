"""The executor that asks everybody at once: one graph without a branch, decided on the host when all has been said.

Every image costs as if all members were asked, and as if it were purified where any image is. Worth it where that is
less than the ways back and forth between waves, as for single images on a GPU.
"""

from typing import ClassVar

import numpy as np

from s2ap_defend.engines import Device
from s2ap_defend.engines.onnxruntime import available_device
from s2ap_defend.errors import EngineError
from s2ap_defend.executors import ExecutorName
from s2ap_defend.executors.rows import sanitise
from s2ap_defend.executors.stages import Stages, StageTime
from s2ap_defend.executors.starters import BoundStages, Defence, StageStarter
from s2ap_defend.model_file import ModelFile
from s2ap_defend.sequential import StageAnswers, accepted_raw, run_sequential_test
from s2ap_defend.stages import CLASSIFIER, CLASSIFIER_AGAIN, PURIFIER, member_scope
from s2ap_defend.types import Float32, Verdicts

__all__ = ["AtOnceExecutor"]


class AtOnceExecutor:
    """Runs all stages of a file as one graph; see Executor.

    Args:
        defence: What is run.
        on: How its stages are put on an engine, all in one graph.
    """

    name: ClassVar[ExecutorName] = "at_once"

    def __init__(self, defence: Defence, *, on: StageStarter) -> None:
        self._test, self._purifies = defence.test, defence.purify
        groups, stages = defence.start(on, "file")
        self._scope = groups[0].scopes[0]
        self._stages = Stages(stages, on.threads)
        self.provider: str = stages[self._scope].engine.provider

    @classmethod
    def of(cls, model: ModelFile, *, device: Device = "auto", threads: int | None = None) -> "AtOnceExecutor":
        """The executor of a verified file; `threads` are those inside an operator on the CPU.

        Raises:
            EngineError: If the device cannot be used, or is TensorRT, whose engines are one a stage.
        """
        chosen = available_device(device)
        if chosen == "tensorrt":
            raise EngineError("executor 'at_once' has no TensorRT engines, which are one a stage; choose 'staged'")
        return cls.with_starter(model, BoundStages(chosen, operator_threads=threads))

    @classmethod
    def with_starter(cls, model: ModelFile, starter: StageStarter) -> "AtOnceExecutor":
        """The executor of a verified file whose stages are run in a way of their own."""
        return cls(Defence.of(model), on=starter)

    def times(self) -> dict[str, StageTime]:
        """What the engine has done since it was loaded, by its stages."""
        return self._stages.times()

    def run(self, images: Float32) -> Verdicts:
        """Purify, detect and correct; see Executor.run."""
        sane = sanitise(images)
        said = self._stages.ask([(self._scope, sane.image)])
        suspicious = self._purifies == "suspicious"
        behind = CLASSIFIER_AGAIN if suspicious else CLASSIFIER
        answers = StageAnswers(
            classifier=said[f"{behind}/log_probabilities"],
            members=np.stack([said[f"{member_scope(i)}/log_probabilities"] for i in range(self._test.members)]),
            on_raw=said[f"{CLASSIFIER}/log_probabilities"] if suspicious else None,
            reconstruction_error=said[f"{PURIFIER}/reconstruction_error"] if self._purifies == "always" else None,
            valid=sane.valid,
            finite=sane.finite,
        )
        outcome = run_sequential_test(self._test, answers)
        probabilities = said[f"{behind}/probabilities"]
        purified, error = sane.image.copy(), np.zeros(len(images), dtype=np.float32)
        if self._purifies != "off":
            raw = accepted_raw(self._test, answers)
            purified[~raw] = said[f"{PURIFIER}/purified"][~raw]
            error[~raw] = said[f"{PURIFIER}/reconstruction_error"][~raw]
            if suspicious:
                probabilities[raw] = said[f"{CLASSIFIER}/probabilities"][raw]
        return Verdicts(
            label=outcome.label,
            adversarial=outcome.adversarial,
            base_label=outcome.base_label,
            probabilities=probabilities,
            label_change_rate=outcome.label_change_rate,
            log_likelihood_ratio=outcome.log_likelihood_ratio,
            members_used=outcome.members_used,
            votes=np.ascontiguousarray(outcome.votes),
            purified=purified,
            reconstruction_error=error,
            abstained=outcome.abstained,
        )
