"""Stages as ONNX Runtime optimised them for this machine, stored in a folder next to the model file.

    NAME.stages/KEY/index.json      outputs, rows at once and SHA-256 of each graph
    NAME.stages/KEY/SCOPE.onnx      the graph

The key holds the hashes of the model, the version of ONNX Runtime and what the machine's processor can do. A folder is
written under another name, then renamed; what does not fit its hash is not used.
"""

import hashlib
import json
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s2ap_defend.engines.onnxruntime import version
from s2ap_defend.executors.stages import StageGraph
from s2ap_defend.model_file import ModelFile

__all__ = ["NewCache", "StageCache"]

_INDEX = "index.json"
_CUT = "3"  # another one when stages are cut in another way


class StageCache:
    """The cache of one model file on this machine.

    Args:
        model: The file.
        joined: Whether stages share an engine where they can.
    """

    def __init__(self, model: ModelFile, *, joined: bool) -> None:
        manifest = model.manifest
        facts = [manifest.weights_sha256, manifest.graph_sha256, _CUT, str(joined), version(), *_machine()]
        key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]
        self.folder = model.path.with_name(f"{model.path.name}.stages") / key

    def read(self) -> dict[str, StageGraph]:
        """The graphs by scope, in order; none where they are not there, or damaged."""
        try:
            index = json.loads((self.folder / _INDEX).read_text())
            found = {}
            for scope, said in index.items():
                model = (self.folder / f"{scope}.onnx").read_bytes()
                if hashlib.sha256(model).hexdigest() != said["sha256"]:
                    return {}
                found[scope] = StageGraph(model, tuple(said["outputs"]), int(said["rows_at_once"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        return found

    @contextmanager
    def writing(self) -> Iterator["NewCache | None"]:
        """A folder into which engines save their graphs; it becomes the cache at the end. None: it cannot be."""
        try:
            self.folder.parent.mkdir(exist_ok=True)
            new = NewCache(Path(tempfile.mkdtemp(prefix=".", dir=self.folder.parent)))
        except OSError:
            yield None
            return
        try:
            yield new
            (new.folder / _INDEX).write_text(json.dumps(new.index(), indent=1))
            shutil.rmtree(self.folder, ignore_errors=True)  # what is there was damaged, or another process was faster
            new.folder.rename(self.folder)
        except OSError:
            pass  # the disk is full, or another process was faster
        finally:
            shutil.rmtree(new.folder, ignore_errors=True)


class NewCache:
    """A cache that is written.

    Attributes:
        folder: Of its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._graphs: dict[str, tuple[tuple[str, ...], int]] = {}

    def add(self, scope: str, graph: StageGraph) -> Path:
        """Where the engine of a graph saves what it made of it."""
        self._graphs[scope] = graph.outputs, graph.rows_at_once
        return self.folder / f"{scope}.onnx"

    def index(self) -> dict[str, dict[str, object]]:
        """What has been saved, by scope."""
        return {
            scope: {
                "outputs": outputs,
                "rows_at_once": rows,
                "sha256": hashlib.sha256((self.folder / f"{scope}.onnx").read_bytes()).hexdigest(),
            }
            for scope, (outputs, rows) in self._graphs.items()
        }


def _machine() -> list[str]:
    """What decides which kernels an optimised graph names."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    flags = re.search(r"^(?:flags|Features)\s*: *(.*)$", text, re.MULTILINE)
    return [platform.system(), platform.machine(), flags[1] if flags else platform.processor()]
