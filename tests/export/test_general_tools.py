"""What tools that know nothing of a defence do to a finished file: docs/export.md says which."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16

from s2ap_defend import DefendedClassifier, ModelFileError
from s2ap_defend.shipped import shipped_file

FASHION = shipped_file(Path("fashion"))
Answers = dict[str, np.ndarray]


def answers(path: Path, images: np.ndarray) -> Answers:
    """All outputs of a file in plain ONNX Runtime, which checks nothing."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images}), strict=True))


def optimised(level: ort.GraphOptimizationLevel) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level, options.optimized_model_filepath = level, str(path)
        ort.InferenceSession(str(FASHION), options, providers=["CPUExecutionProvider"])

    return write


def in_float16(path: Path) -> None:
    onnx.save(convert_float_to_float16(onnx.load(FASHION), keep_io_types=True), path)


SAME = {
    "offline optimiser, basic": optimised(ort.GraphOptimizationLevel.ORT_ENABLE_BASIC),
    "offline optimiser, extended": optimised(ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED),
}
CHANGED = {"float16": in_float16, "dynamic quantisation": lambda path: quantize_dynamic(FASHION, path)}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    rough = np.random.default_rng(0).random((64, 1, 7, 7), np.float32)
    return rough.repeat(4, axis=2).repeat(4, axis=3)


@pytest.fixture(scope="module")
def before(images: np.ndarray) -> Answers:
    return answers(FASHION, images)


@pytest.mark.filterwarnings("ignore")  # the tools' own
@pytest.mark.parametrize("name", [*SAME, *CHANGED])
def test_a_file_that_a_tool_changed_is_not_loaded_and_answers_as_the_documents_say(
    name: str, images: np.ndarray, before: Answers, tmp_path: Path
) -> None:
    path = tmp_path / "changed.onnx"
    (SAME | CHANGED)[name](path)
    after = answers(path, images)
    differ = [output for output, values in after.items() if not np.array_equal(values, before[output], equal_nan=True)]
    if name in SAME:
        assert differ == []
    else:
        assert {"adversarial", "log_likelihood_ratio"} & set(differ)
    with pytest.raises(ModelFileError, match="was changed after it was written"):
        DefendedClassifier.load(path)
