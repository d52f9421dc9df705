"""What tools that know nothing of a defence do to a finished file: docs/export.md says which."""

from pathlib import Path

import numpy as np
import pytest
from tests.benchmarks.test_caught import smooth_images

from s2ap_defend import DefendedClassifier, ModelFileError
from s2ap_defend.shipped import shipped_file

FASHION = shipped_file(Path("fashion"))
SAME = ("offline optimiser, basic", "offline optimiser, extended", "onnxslim", "onnxsim")
CHANGED = ("float16", "dynamic quantisation", "static quantisation")


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.filterwarnings("ignore")  # the tools' own
@pytest.mark.parametrize("name", [*SAME, *CHANGED])
def test_a_file_that_a_tool_changed_is_not_loaded_and_answers_as_the_documents_say(name: str, tmp_path: Path) -> None:
    import general_tools

    if name in {"onnxslim", "onnxsim"}:
        pytest.importorskip(name, reason=f"{name} is not installed")
    images, path = smooth_images(64), tmp_path / "changed.onnx"
    before = general_tools.answers(FASHION, images)
    (general_tools.SAME | general_tools.CHANGED)[name](FASHION, path, images[:16])
    after = general_tools.answers(path, images)
    differ = [output for output, values in after.items() if not np.array_equal(values, before[output], equal_nan=True)]
    if name in SAME:
        assert differ == []
    else:
        assert {"adversarial", "log_likelihood_ratio"} & set(differ)
    with pytest.raises(ModelFileError, match="was changed after it was written"):
        DefendedClassifier.load(path)


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.filterwarnings("ignore")
def test_a_converter_that_knows_no_types_leaves_a_file_that_nothing_loads(tmp_path: Path) -> None:
    import general_tools

    pytest.importorskip("onnxconverter_common", reason="onnxconverter-common is not installed")
    ((_, tool),) = general_tools.BROKEN.items()
    tool(FASHION, tmp_path / "changed.onnx", smooth_images(1))
    with pytest.raises(general_tools.Fail, match="does not match expected type"):
        general_tools.answers(tmp_path / "changed.onnx", smooth_images(1))
