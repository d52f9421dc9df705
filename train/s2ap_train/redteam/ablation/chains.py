"""Chains that are not the served file but are made of its stages, and single networks: all on ONNX Runtime.

Each is a `Target`: judged by the stages' answers, and seen by an attacker that knows exactly that chain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from onnx import ModelProto
from torch import Tensor

from s2ap_defend.manifest import Manifest
from s2ap_defend.model_file import ModelFile
from s2ap_defend.sequential import Correction, SequentialTest
from s2ap_defend.types import Float32, Int64
from s2ap_train.adaptive.confidence import ConfidenceSystem, confidence_plan
from s2ap_train.adaptive.search import bare_plan, defended_plan
from s2ap_train.adaptive.systems import judge, never_flagged, stage_verdicts
from s2ap_train.calibration.flops import StageFlops, clean_flops, image_costs
from s2ap_train.calibration.stage_engines import StageEngines
from s2ap_train.onnx_graphs import torch_stage
from s2ap_train.onnx_graphs.hidden import hidden_stage
from s2ap_train.purifier.gradient_path import GradientPath
from s2ap_train.redteam.ablation.compute import file_flops
from s2ap_train.redteam.ablation.names import FULL, JURY, UNFLAGGED, UNPURIFIED
from s2ap_train.redteam.target import Target
from s2ap_train.statistics.outcome import Outcome
from s2ap_train.twin import Twin
from s2ap_train.twin.answer_features import Features

__all__ = ["Chain", "ChainSystem", "OpenedFile", "chain_target", "corrections", "jury_test", "network_target"]


class ChainSystem:
    """Stages of a file, joined in another way.

    Args:
        engines: The stages of the chain.
        test: The decision over its members; None: the classifier alone answers, and nothing is ever flagged.
        classified: Whether the classifier has a part in it, so that its time counts.
    """

    def __init__(self, engines: StageEngines, test: SequentialTest | None = None, *, classified: bool = True) -> None:
        self._engines = engines
        self._test = test
        self._classified = classified

    def __call__(self, images: Float32, labels: Int64) -> Outcome:
        """Outcome of the chain's answers."""
        said = self._engines.ask(images)
        if self._test is None:
            return never_flagged(said.classifier, labels)
        return judge(stage_verdicts(images, said, self._test), labels, self._test)

    def milliseconds(self, images: Float32) -> float:
        """Time of one image alone: its stages one after the other, members in whole waves; the median over images.

        What a file spends between its stages is not in it. An image that the opening accepts as it came is not purified
        where only the others are, and those ask the classifier twice.
        """
        times = self._engines.alone(images)
        times = times if self._classified else replace(times, classifier=0.0)
        if self._test is None:
            return times.purifier + times.classifier
        return float(np.median(image_costs(times, self._test, self._engines.ask(images))))


@dataclass(frozen=True)
class OpenedFile:
    """A model file with what its chains are made of; all of them share it.

    Attributes:
        file: The opened file.
        twin: Its differentiable stages.
        engines: Its stages on ONNX Runtime, each with one thread.
    """

    file: ModelFile
    twin: Twin
    engines: StageEngines

    @classmethod
    def of(cls, file: ModelFile) -> OpenedFile:
        """Start all stages of a file.

        Raises:
            ModelFileError: If a stage cannot be run or differentiated.
        """
        return cls(file, Twin.from_file(file), StageEngines.from_file(file, threads=1))

    @cached_property
    def flops(self) -> StageFlops:
        """Floating-point operations of its stages."""
        return file_flops(self.file)


@dataclass(frozen=True)
class Chain:
    """Which stages of a file a chain has, and what decides.

    Attributes:
        test: The decision over its members.
        members: Places of its members in the file, in the order in which they are asked.
        purifies: Whether there is a purifier.
        classified: Whether the classifier has a part in it.
    """

    test: SequentialTest
    members: tuple[int, ...]
    purifies: bool
    classified: bool = True

    @classmethod
    def of(cls, name: str, manifest: Manifest) -> Chain:
        """The chain of a file with that name, one of the last rows of the ablation.

        Raises:
            KeyError: If there is no such chain.
        """
        test, everyone = manifest.to_test(), tuple(range(len(manifest.members)))
        purifies = not manifest.purifier.off
        if name == JURY:
            jurors = tuple(np.flatnonzero(test.vote_weights).tolist())
            purified = any(manifest.members[i].sees == "purified" for i in jurors)
            return cls(jury_test(test, jurors), jurors, purifies and purified, classified=False)
        never = replace(test, upper=np.full(test.members, np.inf), final_threshold=np.inf, undecided_abstains=False)
        chains = {
            UNFLAGGED: cls(never, everyone, purifies),
            UNPURIFIED: cls(test, everyone, purifies=False),
            **{row: cls(replace(test, correction=one), everyone, purifies) for one, row in corrections(test).items()},
        }
        return chains[name]

    def engines(self, opened: OpenedFile) -> StageEngines:
        """Its stages on ONNX Runtime."""
        engines = opened.engines if self.purifies else opened.engines.without(purifier=True)
        return engines.asking(self.members)

    def clean_flops(self, opened: OpenedFile, images: Float32) -> float:
        """Floating-point operations of one of these images, the mean."""
        every = opened.flops
        members = every.members[list(self.members)]
        flops = StageFlops(every.purifier * self.purifies, every.classifier * self.classified, members)
        return clean_flops(flops, self.test, self.engines(opened).ask(images))


def corrections(test: SequentialTest) -> dict[Correction, str]:
    """Names of the rows that are the whole file, by what flagged images get: as served, rejected, and what it is worth.

    Files that reject could correct instead, where somebody votes.
    """
    shown: set[Correction] = {test.correction, "reject"}
    if test.correction == "reject" and test.vote_weights.any():
        shown.add("correct")
    return {one: name for one, name in FULL.items() if one in shown}


def jury_test(test: SequentialTest, jurors: Sequence[int]) -> SequentialTest:
    """The vote of these members: all are asked, and nothing is flagged."""
    places, never = list(jurors), np.full(len(jurors), np.inf)
    return replace(
        test,
        edges=test.edges[places],
        increments=test.increments[places],
        lower=-never,
        upper=never,
        final_threshold=np.inf,
        waves=(len(places),),
        vote_weights=test.vote_weights[places],
        answer="robust",
        opening=len(places),
        await_vote=False,
        signals=(),
        correction="reject",
        undecided_abstains=False,
    )


def chain_target(name: str, opened: OpenedFile) -> Target:
    """One chain of a model file, as `Chain.of` names them."""
    chain = Chain.of(name, opened.file.manifest)
    twin = opened.twin if chain.purifies else opened.twin.without_purifier()
    places = list(chain.members)

    def view(images: Tensor, path: GradientPath, members: int | None) -> tuple[Tensor, Tensor | None]:
        c, m = twin.answers(images, path, 0 if members == 0 else None)
        return c, None if m is None else m[places[:members]]

    return Target(
        name=name,
        system=ChainSystem(chain.engines(opened), chain.test, classified=chain.classified),
        view=view,
        classify=twin.classify,
        test=chain.test,
        members=len(places),
        purifies=chain.purifies,
        features=(lambda images, path: twin.features(twin.purify(images, path)),) if twin.has_features else (),
        plan=partial(defended_plan, chain.test),
    )


def network_target(
    name: str, stage: ModelProto, threshold: float | None = None, *, borrowing: Twin | None = None
) -> Target:
    """One network on ONNX Runtime, such as a juror, an adversarially trained or a wider classifier.

    Args:
        name: Of the network.
        stage: `image` -> `log_probabilities`, as an exported classifier.
        threshold: Probability that its largest must reach for an input not to be flagged; None: none is.
        borrowing: The twin of the file whose classifier the network is, where that lends it gradients; None: it has its
            own.

    Raises:
        ModelFileError: If the stage cannot be run or differentiated.
    """
    classify, features = _differentiated(stage) if borrowing is None else (borrowing.classify, ())
    engines = StageEngines(None, stage, (), threads=1)
    return Target(
        name=name,
        system=ChainSystem(engines)
        if threshold is None
        else ConfidenceSystem(lambda images: engines.ask(images).classifier, threshold),
        view=lambda images, path, members: (classify(images), None),  # noqa: ARG005
        classify=classify,
        features=features,
        plan=bare_plan if threshold is None else partial(confidence_plan, threshold),
    )


def _differentiated(stage: ModelProto) -> tuple[Callable[[Tensor], Tensor], tuple[Features, ...]]:
    """A network and its hidden features."""
    twin, hidden = torch_stage(stage), torch_stage(hidden_stage(stage))
    return (lambda images: twin(images)[0]), ((lambda images, path: hidden(images)[0].flatten(1)),)  # noqa: ARG005
