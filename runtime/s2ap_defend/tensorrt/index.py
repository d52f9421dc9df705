"""The folder of a file's engines and its index: what each was built for, so that none is used where it does not fit.

DIR/index.json              the machine, and SHA-256 of every engine and of the stage that it was built from
DIR/SCOPE-LOW-HIGH.engine   an engine
DIR/timing/                 what TensorRT measured of its kernels
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from s2ap_defend.errors import ModelFileError
from s2ap_defend.files import replace_file
from s2ap_defend.tensorrt.plan import PlannedEngine

__all__ = ["INDEX", "Built", "Machine", "read_index", "stale_engines", "write_engines"]

INDEX = "index.json"


class Machine(BaseModel):
    """What an engine fits: another GPU, driver or TensorRT refuses it, or runs it slowly.

    Attributes:
        gpu: Its name.
        driver: Version of NVIDIA's driver.
        tensorrt: Version of TensorRT.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    gpu: str
    driver: str
    tensorrt: str


class StoredEngine(BaseModel):
    """An engine in the index: what it was built from, and its own SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    scope: str
    low: int
    high: int
    sparse: bool
    stage_sha256: str
    engine_sha256: str


class EngineIndex(BaseModel):
    """What lies in a folder of engines."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    machine: Machine
    engines: tuple[StoredEngine, ...]


@dataclass(frozen=True)
class Built:
    """What `write_engines` did: names of engines that were built, each with the reason, and of those that fitted."""

    built: dict[str, str]
    fitting: tuple[str, ...]


def read_index(folder: Path) -> EngineIndex | None:
    """The index of a folder; None where there is none, or it is damaged."""
    try:
        return EngineIndex.model_validate_json((folder / INDEX).read_bytes())
    except (OSError, ValidationError):
        return None


def stale_engines(folder: Path, planned: Sequence[PlannedEngine], machine: Machine) -> dict[str, str]:
    """Engines that have to be built, by file name, each with the reason; none where all fit.

    Args:
        folder: Of the engines.
        planned: What the file needs.
        machine: This one.
    """
    index = read_index(folder)
    if index is None:
        return {engine.file: "there is no index" for engine in planned}
    if index.machine != machine:
        before, now = index.machine.model_dump(), machine.model_dump()
        key = next(name for name in before if before[name] != now[name])
        return {engine.file: f"built for {key} {before[key]}, this is {now[key]}" for engine in planned}
    stored = {(one.scope, one.low, one.high): one for one in index.engines}
    reasons = {}
    for engine in planned:
        one = stored.get((engine.scope, engine.low, engine.high))
        if one is None:
            reasons[engine.file] = "it was not built yet"
        elif (one.stage_sha256, one.sparse) != (_sha256(engine.model), engine.sparse):
            reasons[engine.file] = "built from another stage"
        elif _file_sha256(folder / engine.file) != one.engine_sha256:
            reasons[engine.file] = "it is missing or damaged"
    return reasons


def write_engines(
    folder: Path,
    planned: Sequence[PlannedEngine],
    machine: Machine,
    build: Callable[[PlannedEngine], bytes],
) -> Built:
    """Build what does not fit, and store it; the index grows engine by engine, so that a stopped run goes on.

    Engines of a file that was there before are removed.

    Args:
        folder: Made when missing.
        planned: What the file needs.
        machine: This one.
        build: Gives the serialised engine.

    Raises:
        ModelFileError: If the folder cannot be written.
        EngineError: If an engine cannot be built.
    """
    reasons = stale_engines(folder, planned, machine)
    before = read_index(folder)
    stored = {} if before is None else {_name(one): one for one in before.engines}
    fitting = {engine.file: stored[engine.file] for engine in planned if engine.file not in reasons}
    try:
        for engine in planned:
            if engine.file in reasons:
                content = build(engine)
                replace_file(folder / engine.file, content)
                sums = {"stage_sha256": _sha256(engine.model), "engine_sha256": _sha256(content)}
                facts = {"scope": engine.scope, "low": engine.low, "high": engine.high, "sparse": engine.sparse}
                fitting[engine.file] = StoredEngine.model_validate(facts | sums)
                index = EngineIndex(machine=machine, engines=tuple(fitting.values()))
                replace_file(folder / INDEX, index.model_dump_json(indent=2).encode())
        for gone in stored.keys() - fitting.keys():
            (folder / gone).unlink(missing_ok=True)
    except OSError as error:
        raise ModelFileError(f"{folder} cannot be written: {error.strerror or error}") from error
    return Built(reasons, tuple(engine.file for engine in planned if engine.file not in reasons))


def _name(one: StoredEngine) -> str:
    return f"{one.scope}-{one.low}-{one.high}.engine"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _file_sha256(path: Path) -> str:
    try:
        return _sha256(path.read_bytes())
    except OSError:
        return ""
