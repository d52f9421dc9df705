"""How the stages of a file are put on engines: on the CPU, in buffers that are used again, on TensorRT."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from onnx import ModelProto

from s2ap_defend.decision_record import Purify, Sees
from s2ap_defend.engines import Device
from s2ap_defend.engines.bound import SIZES, BoundEngine
from s2ap_defend.engines.cores import usable_cores
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine, available_device
from s2ap_defend.executors.cache import StageCache
from s2ap_defend.executors.groups import Group, Joining, asked_groups
from s2ap_defend.executors.stages import Stage, StageGraph, stage_graphs
from s2ap_defend.executors.tensorrt import BUCKETS, engine_folder, made_folders, stage_options
from s2ap_defend.model_file import ModelFile
from s2ap_defend.sequential import SequentialTest

__all__ = ["BoundStages", "CpuStages", "Defence", "StageStarter", "TensorRTStages", "starter_for"]


@dataclass(frozen=True)
class Defence:
    """What executors run.

    Attributes:
        model: A defended model.
        test: Its tables.
        sees: What each of its members sees.
        purify: Which images are purified.
        folder: Where its external data lies; None: all weights are in memory.
    """

    model: ModelProto
    test: SequentialTest
    sees: Sequence[Sees]
    purify: Purify
    folder: Path | None = None

    @classmethod
    def of(cls, file: ModelFile) -> "Defence":
        """That of a verified file."""
        manifest, folder = file.manifest, file.folder if file.data_locations else None
        sees = [member.sees for member in manifest.members]
        return cls(file.outline, manifest.to_test(), sees, manifest.decision.purify, folder)

    def start(self, on: "StageStarter", joining: Joining) -> tuple[list[Group], dict[str, Stage]]:
        """Its groups in the order in which they are asked, and their engines by the first scope of each.

        Raises:
            EngineError: If the device cannot be used.
            ModelFileError: If a stage cannot be cut out or run.
        """
        groups = asked_groups(self.test, self.sees, self.purify, joining=joining)
        return groups, on.start(self.model, groups, self.folder)


class StageStarter(Protocol):
    """Puts the stages of a file on engines."""

    @property
    def joining(self) -> Joining:
        """Which stages share an engine."""

    @property
    def threads(self) -> int:
        """Engine runs of one caller at a time."""

    def start(self, model: ModelProto, groups: Sequence[Group], folder: Path | None = None) -> dict[str, Stage]:
        """The engines by the first scope of each group.

        Args:
            model: A defended model.
            groups: Its stages, as `joining` says.
            folder: Where its external data lies; None: all weights are in memory.

        Raises:
            EngineError: If the device cannot be used.
            ModelFileError: If a stage cannot be cut out or run.
        """


@dataclass(frozen=True)
class CpuStages:
    """Every run has one thread; with one at a time, stages that are asked about the same images share an engine.

    Attributes:
        threads: Engine runs at a time.
        cache: Where optimised graphs are stored; None: nowhere.
    """

    threads: int
    cache: StageCache | None = None

    @property
    def joining(self) -> Joining:
        """Which stages share an engine."""
        return "same images" if self.threads == 1 else "none"

    def start(self, model: ModelProto, groups: Sequence[Group], folder: Path | None = None) -> dict[str, Stage]:
        """The engines by the first scope of each group."""
        stored = self.cache.read() if self.cache else {}
        graphs = stored.items() if stored else stage_graphs(model, groups)
        with self.cache.writing() if self.cache and not stored else nullcontext() as cached:

            def start(scope: str, graph: StageGraph) -> Stage:
                save_to = cached.add(scope, graph) if cached else None
                engine = OnnxRuntimeEngine(
                    graph.model, folder=folder, device="cpu", threads=1, optimised=bool(stored), save_to=save_to
                )
                return Stage(engine, graph.outputs, graph.rows_at_once)

            return {scope: start(scope, graph) for scope, graph in graphs}


@dataclass(frozen=True)
class BoundStages:
    """The stages of a step in one graph, which reads and writes buffers that are used again.

    What the purifier makes of an image stays on the device for those of the step that see it; a step costs one copy of
    its images there and one of all its answers back. On the CPU it gives the bits of `CpuStages`, and gains nothing.

    Attributes:
        device: 'cuda' or 'cpu'.
        sizes: Of batches, ascending.
        operator_threads: Of the CPU, inside one operator; None: as many as this process has cores.
    """

    threads: ClassVar[int] = 1
    joining: ClassVar[Joining] = "step"
    device: Device
    sizes: tuple[int, ...] = SIZES
    operator_threads: int | None = 1

    def start(self, model: ModelProto, groups: Sequence[Group], folder: Path | None = None) -> dict[str, Stage]:
        """The engines by the first scope of each group."""
        rows = self.sizes[-1]
        graphs = stage_graphs(model, groups, rows_at_once=rows, constant=self.device != "cpu", stacked=True)

        def start(graph: StageGraph) -> Stage:
            engine = BoundEngine(
                graph.model,
                folder=folder,
                device=self.device,
                threads=self.operator_threads,
                stacked=graph.stacked,
                sizes=self.sizes,
                ahead=self.device == "cuda",
            )
            return Stage(engine, graph.outputs, rows)

        return {scope: start(graph) for scope, graph in graphs}


@dataclass(frozen=True)
class TensorRTStages:
    """One engine a stage, built by ONNX Runtime's TensorRT provider where there is none yet.

    Attributes:
        engines: Folder of the engines; None: they are built anew each time.
    """

    threads: ClassVar[int] = 1
    joining: ClassVar[Joining] = "none"
    engines: Path | None

    def start(self, model: ModelProto, groups: Sequence[Group], folder: Path | None = None) -> dict[str, Stage]:
        """The engines by the first scope of each group."""
        graphs = stage_graphs(model, groups, rows_at_once=BUCKETS[-1][1], constant=True, folder=folder)

        def start(scope: str, graph: StageGraph) -> Stage:
            options = stage_options(self.engines, scope, graph.model) if self.engines else None
            engine = OnnxRuntimeEngine(graph.model, device="tensorrt", threads=1, provider_options=options)
            return Stage(engine, graph.outputs, graph.rows_at_once)

        with made_folders(self.engines) if self.engines else nullcontext():
            return {scope: start(scope, graph) for scope, graph in graphs}


def starter_for(
    file: ModelFile,
    *,
    device: Device = "auto",
    threads: int | None = None,
    cache: bool = False,
    engines: Path | None = None,
) -> StageStarter:
    """How the stages of a file are run on a device.

    Args:
        file: A verified file.
        device: 'auto', 'cpu', 'cuda' or 'tensorrt'.
        threads: Engine runs at a time on the CPU; None: as many as this process has cores.
        cache: Whether optimised graphs of stages are stored next to the file, on the CPU.
        engines: Folder of TensorRT's engines; None: NAME.tensorrt next to the file.

    Raises:
        EngineError: If there is no such device.
    """
    chosen = available_device(device)
    if chosen == "tensorrt":
        return TensorRTStages(engine_folder(file.path) if engines is None else engines)
    if chosen == "cuda":
        return BoundStages("cuda")
    threads = threads or usable_cores()
    return CpuStages(threads, StageCache(file, joined=threads == 1) if cache else None)
