"""A file of other precision that the benchmark writes is one that everything opens."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.benchmarks.test_caught import smooth_images

from s2ap_defend import DefendedClassifier
from s2ap_defend.model_file import open_model_file
from s2ap_defend.shipped import shipped_file
from s2ap_train.data import ImageSet, Splits


@pytest.mark.usefixtures("benchmarks")
def test_a_file_in_int8_is_calibrated_again_and_opened(tmp_path: Path) -> None:
    import precision

    file = open_model_file(shipped_file(Path("fashion")))
    images = smooth_images(120)
    labels = DefendedClassifier.load("fashion", device="cpu")(images).label
    some = ImageSet(images, labels)
    splits = Splits(some, some, some, some, some, file.manifest.classes, "smooth")
    few = replace(splits, fit=some.subset(slice(0, 32)))
    precision.written(file, "int8, classifier alone", few, tmp_path / "int8.onnx")
    new = open_model_file(tmp_path / "int8.onnx")
    assert new.manifest.precision is not None
    assert new.manifest.precision.classifier == "int8"
    assert {member.precision for member in new.manifest.members} == {"float32"}
    assert new.manifest.test.calibration.reference_ratios != file.manifest.test.calibration.reference_ratios
    assert new.size_bytes < 0.85 * file.size_bytes
    found = DefendedClassifier.load(tmp_path / "int8.onnx", device="cpu")(images).label
    assert (found == labels).mean() > 0.9
