"""What common corruptions leave of a file, and when drift is noticed."""

from pathlib import Path

import pytest
from tests.benchmarks.test_caught import smooth_images

from s2ap_defend import DefendedClassifier
from s2ap_defend.shipped import shipped_file
from s2ap_train.data import ImageSet

pytestmark = pytest.mark.usefixtures("benchmarks")


def test_images_without_detail_are_drift_and_rows_say_when_it_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    from corruptions import corruptions, print_table

    classifier = DefendedClassifier.load(shipped_file(Path("fashion")), device="cpu")
    images = smooth_images(60)
    found = corruptions(classifier, ImageSet(images, classifier(images).label), seed=0)
    clean, *corrupted = found
    assert (clean["corruption"], clean["label_right"]) == ("none", 1.0)
    assert {(row["corruption"], row["severity"]) for row in corrupted} >= {("brightness", 1), ("jpeg", 5)}
    for row in found:
        assert row["right_or_flagged"] <= min(1.0, row["label_right"] + row["flagged"])
        assert row["drift_after"] is None or 1 <= row["drift_after"] <= 60
    assert any(row["drift_after"] for row in found), "they are no garments"
    assert any(row["label_right"] < 1 for row in corrupted)
    print_table({"rows": found})
    assert capsys.readouterr().out.count("| contrast ") == 5
