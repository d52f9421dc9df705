"""`harden` with few images, few classes and many: it refuses before anything is trained, or makes a file."""

from pathlib import Path

import pytest
from tests.export.small_recipe import OVERRIDES
from tests.train.few_images import write_npz

from s2ap_defend import DefendedClassifier
from s2ap_defend.commands.main import run


def harden(folder: Path, counts: list[int], sizes: str = "", *changes: str) -> int:
    data = f'data={{source="npz", root="{write_npz(folder / "data.npz", counts)}"{sizes and f", {sizes}"}}}'
    more = [part for change in (data, *changes) for part in ("--set", change)]
    return run(["harden", "digits", "-o", str(folder / "m.onnx"), "--workers", "1", *OVERRIDES, *more])


@pytest.mark.parametrize("counts", [[100, 100], [100, 97, 3]])
def test_two_hundred_images_cut_by_default_are_refused_with_every_number_that_is_needed(
    counts: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert harden(tmp_path, counts) == 2
    error = capsys.readouterr().err
    for told in ("data.fit to 20", "data.calibration to 19", "data.validation to 10"):
        assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "m.onnx.training").exists()


def test_one_class_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert harden(tmp_path, [200]) == 2
    assert "labels has 1 class, a classifier needs two or more" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("counts", [[110, 110], [110, 107, 3]])
def test_few_images_of_two_and_three_classes_that_are_cut_well_make_a_file(counts: list[int], tmp_path: Path) -> None:
    sizes = "validation=20, fit=50, calibration=50, test_limit=20"
    assert harden(tmp_path, counts, sizes, "adversarial.epochs=6", "plain.epochs=8", "detection.bins=4") == 0
    classifier = DefendedClassifier.load(tmp_path / "m.onnx", device="cpu")
    assert len(classifier.classes) == len(counts)
    assert "NaN" not in classifier.manifest.model_dump_json()
