"""Stages as ONNX Runtime optimised them for this machine, kept in a folder beside the model file.

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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from s2ap_defend.engines.onnxruntime import version
from s2ap_defend.executors.stages import StageGraph
from s2ap_defend.model_file import ModelFile

__all__ = ["StageCache"]

_INDEX = "index.json"
_CUT = "2"  # another one when stages are cut in another way


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
    def writing(self, graphs: Mapping[str, StageGraph]) -> Iterator[Path | None]:
        """A folder into which engines save SCOPE.onnx; it becomes the cache at the end. None: it cannot be written."""
        try:
            self.folder.parent.mkdir(exist_ok=True)
            new = Path(tempfile.mkdtemp(prefix=".", dir=self.folder.parent))
        except OSError:
            yield None
            return
        try:
            yield new
            index = {
                scope: {
                    "outputs": graph.outputs,
                    "rows_at_once": graph.rows_at_once,
                    "sha256": hashlib.sha256((new / f"{scope}.onnx").read_bytes()).hexdigest(),
                }
                for scope, graph in graphs.items()
            }
            (new / _INDEX).write_text(json.dumps(index, indent=1))
            shutil.rmtree(self.folder, ignore_errors=True)  # what is there was damaged, or another process was faster
            new.rename(self.folder)
        except OSError:
            pass  # the disk is full, or another process was faster
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _machine() -> list[str]:
    """What decides which kernels an optimised graph names."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    flags = re.search(r"^(?:flags|Features)\s*: *(.*)$", text, re.MULTILINE)
    return [platform.system(), platform.machine(), flags[1] if flags else platform.processor()]
