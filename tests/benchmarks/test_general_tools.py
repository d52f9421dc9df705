"""What tools that know nothing of a defence do to a finished file: docs/export.md says which."""

from pathlib import Path

import numpy as np
import pytest
from tests.benchmarks.test_caught import smooth_images

from s2ap_defend import DefendedClassifier, ModelFileError
from s2ap_defend.shipped import shipped_file

FASHION = shipped_file(Path("fashion"))
SAME = ("offline optimiser, basic", "offline optimiser, extended")
CHANGED = ("float16", "dynamic quantisation")


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.filterwarnings("ignore")  # the tools' own
@pytest.mark.parametrize("name", [*SAME, *CHANGED])
def test_a_file_that_a_tool_changed_is_not_loaded_and_answers_as_the_documents_say(name: str, tmp_path: Path) -> None:
    import general_tools

    images, path = smooth_images(64), tmp_path / "changed.onnx"
    before = general_tools.answers(FASHION, images)
    (general_tools.SAME | general_tools.CHANGED)[name](FASHION, path)
    after = general_tools.answers(path, images)
    differ = [output for output, values in after.items() if not np.array_equal(values, before[output], equal_nan=True)]
    if name in SAME:
        assert differ == []
    else:
        assert {"adversarial", "log_likelihood_ratio"} & set(differ)
    with pytest.raises(ModelFileError, match="was changed after it was written"):
        DefendedClassifier.load(path)
