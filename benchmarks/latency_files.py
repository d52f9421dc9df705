"""Defended graphs of any size for the benchmark of latency: untrained networks, tables that stop at a given member.

Time does not depend on what weights say, only who is asked does, and that is in the tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from onnx import ModelProto

from s2ap_defend.bench.rounds import Variant
from s2ap_defend.decision_record import Purify
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.executors.staged import StagedExecutor
from s2ap_defend.executors.starters import CpuStages, Defence
from s2ap_defend.sequential import NEAR_TIE, SequentialTest
from s2ap_defend.types import Float32, Verdicts
from s2ap_export.graph.compose import compose
from s2ap_export.tracing.trace import trace_classifier, trace_purifier
from s2ap_train.models import SmallCNN, fold_batch_norm
from s2ap_train.purifier import Purification, UNet, hadamard_bank

Shape = tuple[int, int, int]
OPENING = 2
WAVE = 4
CLASSES = 10
OFF = Purification(sigma=(), radius=0.1, steps=0, rho=0.0, bank_size=2)
ONE_STEP = Purification(sigma=(0.1,), radius=0.15, steps=1, rho=0.05, bank_size=2)
CHANNELS = (16, 16, 32, 32)


@dataclass(frozen=True)
class Built:
    """A graph, its tables and the classifier alone."""

    model: ModelProto
    test: SequentialTest
    purify: Purify
    classifier: ModelProto

    @property
    def defence(self) -> Defence:
        """The graph as executors take it; all members see raw images."""
        return Defence(self.model, self.test, ["raw"] * self.test.members, self.purify)

    def variants(self, images: Float32) -> dict[str, Variant]:
        """One call of the bare classifier and of both executors, on one thread of the CPU."""
        whole, bare = (
            OnnxRuntimeEngine(model.SerializeToString(), device="cpu", threads=1)
            for model in (self.model, self.classifier)
        )
        staged = StagedExecutor(self.defence, on=CpuStages(1))
        return {
            "bare classifier": [partial(bare.run, {"image": images}, ["log_probabilities"])],
            "whole": [partial(whole.run, {"image": images}, Verdicts.FIELDS)],
            "staged": [partial(staged.run, images)],
        }


def built(
    shape: Shape,
    members: int,
    *,
    asks_all: bool,
    purification: Purification = OFF,
    networks: Sequence[ModelProto] = (),
) -> Built:
    """A graph whose images all stop after the opening, or ask every member; all members are as large as the classifier.

    Args:
        shape: (C, H, W).
        members: In waves of WAVE.
        asks_all: Whether nothing is decided before the last member.
        purification: Every image is purified, or none where it has no step.
        networks: The classifier and the members; none: a small one in the place of all.
    """
    lower = np.full(members, -np.inf)
    lower[OPENING - 1 :] = -np.inf if asks_all else 0.5
    test = SequentialTest(
        evidence="margin",
        edges=np.full((members, 1), NEAR_TIE),
        increments=np.zeros((members, 2)),
        lower=lower,
        upper=np.full(members, np.inf),
        final_threshold=np.inf,
        waves=tuple(min(WAVE, members - first) for first in range(0, members, WAVE)),
        vote_weights=np.ones(members),
        opening=OPENING,
    )
    network, *jurors = networks or [_classifier(shape)] * (1 + members)
    purify: Purify = "off" if purification.off else "always"
    model = compose(
        untrained_purifier(shape, purification), network, jurors, test, sees=["raw"] * members, purify=purify
    )
    return Built(model, test, purify, network)


@cache
def _classifier(shape: Shape) -> ModelProto:
    network = SmallCNN(shape[0], CLASSES, CHANNELS, shape[1:], seed=0).eval()
    return trace_classifier(fold_batch_norm(network), shape, "classifier")


@cache
def untrained_purifier(shape: Shape, purification: Purification) -> ModelProto:
    """The stage of a purifier, with a small score model."""
    bank = hadamard_bank(purification.bank_size, shape, purification.bank_seed)
    return trace_purifier(UNet(shape[0], 16, (1, 2), seed=0).eval(), bank, purification, shape, "purifier")
