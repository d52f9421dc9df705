"""The file in other runtimes, without this package: the examples give the verdicts of `DefendedClassifier`."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from s2ap_defend import DefendedClassifier

ROOT = Path(__file__).parents[2]
JAVASCRIPT, CPP = ROOT / "examples" / "javascript", ROOT / "examples" / "cpp"
OLDEST = ROOT / ".venv-oldest" / "bin" / "python"
FILES = ["version-4", "version-4-keeping", "version-4-abstaining", "sparse"]
HEADERS = Path(os.environ.get("ONNXRUNTIME_ROOT", "/usr")) / "include"

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (JAVASCRIPT / "node_modules").exists(),
    reason="node or its packages are not installed: make test-node",
)
needs_headers = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("g++") is None or not any(HEADERS.glob("**/onnxruntime_cxx_api.h")),
    reason="needs cmake, g++ and ONNX Runtime's headers: ONNXRUNTIME_ROOT=FOLDER make test-cpp",
)
needs_oldest = pytest.mark.skipif(
    not OLDEST.exists(), reason="the oldest ONNX Runtime is not installed: make test-oldest"
)

WITH_OLDEST = """
import json, sys
import numpy as np
import onnxruntime
from s2ap_defend import DefendedClassifier

model, images, *shape = sys.argv[1:]
images = np.fromfile(images, "<f4").reshape(-1, *map(int, shape))
names = ("label", "adversarial", "members_used", "abstained")
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
said = dict(zip(names, session.run(list(names), {"image": images})))
for executor in ("staged", "at_once"):
    ours = DefendedClassifier.load(model, device="cpu", executor=executor)(images)
    for name in names:
        assert np.array_equal(getattr(ours, name), said[name]), (executor, name)
print(json.dumps({"version": onnxruntime.__version__, **{name: said[name].tolist() for name in names}}))
"""


@pytest.fixture(params=FILES)
def model(request: pytest.FixtureRequest, golden: Path) -> Path:
    """A golden file, or one with weights that are stored without their zeros."""
    if request.param == "sparse":
        path: Path = request.getfixturevalue("sparse_model_path")
        return path
    return golden / f"{request.param}.onnx"


def run(command: list[str], model: Path, images: np.ndarray, folder: Path, *more: str) -> dict[str, list[float]]:
    """What a program answers for a file and images, by output."""
    (folder / "images.bin").write_bytes(images.astype("<f4").tobytes())
    shape = [str(size) for size in images.shape[1:]]
    called = [*command, str(model), str(folder / "images.bin"), *shape, *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "runtime")}
    done = subprocess.run(called, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    answered: dict[str, list[float]] = json.loads(done.stdout)
    return answered


def in_node(model: Path, images: np.ndarray, folder: Path, *runtime: str) -> dict[str, list[float]]:
    return run(["node", str(JAVASCRIPT / "run_model.mjs")], model, images, folder, *runtime)


def assert_as_here(model: Path, ask: Callable[[np.ndarray], dict[str, list[float]]]) -> None:
    images = np.random.default_rng(0).random((256, 1, 8, 8), dtype=np.float32)
    answered = ask(images)
    verdicts = DefendedClassifier.load(model, device="cpu")(images)
    for output in ("label", "adversarial", "members_used", "abstained"):
        assert answered[output] == getattr(verdicts, output).tolist(), output


@needs_node
def test_the_file_gives_the_same_verdicts_in_node(model: Path, tmp_path: Path) -> None:
    assert_as_here(model, lambda images: in_node(model, images, tmp_path))


@needs_node
def test_the_file_gives_the_same_verdicts_in_webassembly(model: Path, tmp_path: Path) -> None:
    assert_as_here(model, lambda images: in_node(model, images, tmp_path, "onnxruntime-web"))


@needs_node
def test_pixels_that_are_none_are_flagged_in_node_and_change_nothing_for_their_neighbours(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).random((8, 1, 8, 8), dtype=np.float32)
    bad = {1: np.nan, 3: np.inf, 4: -np.inf, 6: 1e30, 7: -5.0}
    for row, pixel in bad.items():
        images[row, 0, 2, 3] = pixel
    good = [row for row in range(8) if row not in bad]
    together = in_node(tiny_model_path, images, tmp_path)
    alone = in_node(tiny_model_path, images[good], tmp_path)
    assert all(together["adversarial"][row] for row in bad)
    assert [row for row in range(8) if together["abstained"][row]] == [1, 3, 4]
    for output, values in alone.items():
        assert values == [together[output][row] for row in good], output


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example in C++, built with CMake; the library is that of this Python where there is no other."""
    folder = tmp_path_factory.mktemp("cpp")
    (own,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(own)
    library = next((HEADERS.parent / "lib").glob("**/libonnxruntime.so"), folder / "libonnxruntime.so")
    options = [f"-DONNXRUNTIME_ROOT={HEADERS.parent}", f"-DONNXRUNTIME_LIBRARY={library}"]
    for command in (["cmake", "-S", str(CPP), "-B", str(folder), *options], ["cmake", "--build", str(folder)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run_model"


@needs_headers
def test_the_file_gives_the_same_verdicts_in_cpp(model: Path, program: Path, tmp_path: Path) -> None:
    assert_as_here(model, lambda images: run([str(program)], model, images, tmp_path))


@needs_headers
def test_the_program_says_in_one_line_what_is_wrong(program: Path, tmp_path: Path) -> None:
    missing = [str(program), str(tmp_path / "no.onnx"), str(tmp_path / "no.bin"), "1", "8", "8"]
    for command, code, said in (([str(program)], 2, "usage: run_model"), (missing, 1, "no.bin cannot be read")):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == code
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1


@needs_oldest
def test_the_oldest_onnxruntime_gives_the_same_verdicts(model: Path, tmp_path: Path) -> None:
    script = tmp_path / "with_oldest.py"
    script.write_text(WITH_OLDEST)
    assert_as_here(model, lambda images: run([str(OLDEST), str(script)], model, images, tmp_path))
    versions = run([str(OLDEST), str(script)], model, np.zeros((1, 1, 8, 8), np.float32), tmp_path)["version"]
    assert str(versions).startswith("1.22.")


@pytest.mark.parametrize("folder", ["javascript", "cpp"])
def test_an_example_is_short_enough_to_be_read(folder: str) -> None:
    for file in (ROOT / "examples" / folder).iterdir():
        if file.is_file():
            assert len(file.read_text().splitlines()) <= 80, file.name
