"""The count of false alarms against what a calibration promises."""

from pathlib import Path

import numpy as np
import pytest
from tests.benchmarks.test_caught import smooth_images

from s2ap_defend.model_file import open_model_file
from s2ap_defend.shipped import shipped_file
from s2ap_train.calibration.stage_engines import StageEngines

pytestmark = pytest.mark.usefixtures("benchmarks")


def test_alarms_are_counted_among_images_that_are_answered_right(capsys: pytest.CaptureFixture[str]) -> None:
    from false_alarms import _row, print_table

    file = open_model_file(shipped_file(Path("fashion")))
    engines = StageEngines.from_file(file)
    known = engines.answers(smooth_images(400), None).measured_by(file.manifest.to_test())
    known = engines.answers(smooth_images(400), known.first)  # right by definition
    same = _row(file, known, known, 0.05)
    assert (same["calibrated_on"], same["right"], same["test_images"]) == (400, 400, 400)
    assert same["rate"] == same["alarms"] / 400 <= 0.05
    assert same["holds"]

    noise = np.random.default_rng(1).random((200, 1, 28, 28), np.float32)
    other = engines.answers(noise, None).measured_by(file.manifest.to_test())
    other = engines.answers(noise, np.where(np.arange(200) < 150, other.first, (other.first + 1) % 10))
    strange = _row(file, known, other, 0.05)
    assert strange["right"] == 150
    assert strange["alarms"] <= round(200 * strange["flagged_of_all"])
    assert strange["holds"] == (strange["rate"] <= strange["bound"])
    print_table({"rows": [same, strange]})
    assert capsys.readouterr().out.count("| fashion, seed 0 |") == 2
