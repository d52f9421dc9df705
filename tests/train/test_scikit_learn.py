"""A defended file in the hands of scikit-learn."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from sklearn.base import is_classifier
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import accuracy_score, confusion_matrix, get_scorer, log_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import check_is_fitted

from s2ap_defend import DefendedClassifier
from tests.export.defended_files import DECISION, PURIFICATION, TABLES, write_untrained


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> DefendedClassifier:
    """A file of two classes."""
    path: Path = tmp_path_factory.mktemp("two") / "two.onnx"
    write_untrained(path, TABLES, DECISION, PURIFICATION, classes=2)
    return DefendedClassifier.load(path, device="cpu")


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, 256)


def test_it_is_a_classifier_that_is_fitted(classifier):
    assert is_classifier(classifier)
    check_is_fitted(classifier)


def test_metrics_take_its_answers(classifier, random_images, labels):
    predicted = classifier.predict(random_images)
    assert accuracy_score(labels, predicted) == classifier.score(random_images, labels)
    assert confusion_matrix(labels, predicted).sum() == 256
    assert log_loss(labels, classifier.predict_proba(random_images), labels=[0, 1]) > 0
    assert get_scorer("accuracy")(classifier, random_images, labels) == classifier.score(random_images, labels)


def test_a_pipeline_from_bytes_to_labels_ends_with_it(classifier, random_images, labels):
    stored = np.rint(255 * random_images).astype(np.uint8)
    to_pixels = FunctionTransformer(lambda images: images.astype(np.float32) / np.float32(255))
    pipeline = make_pipeline(to_pixels, classifier)
    assert isinstance(pipeline, Pipeline)
    pixels = stored.astype(np.float32) / np.float32(255)
    assert np.array_equal(pipeline.predict(stored), classifier.predict(pixels))
    assert pipeline.score(stored, labels) == classifier.score(pixels, labels)
    assert np.array_equal(pipeline.classes_, [0, 1])
    assert np.array_equal(pipeline.fit(stored, labels).predict(stored), classifier.predict(pixels))


def test_its_shares_are_drawn_as_a_calibration_curve(classifier, random_images, labels):
    mpl.use("agg")
    display = CalibrationDisplay.from_estimator(classifier, random_images, labels, n_bins=3)
    assert np.array_equal(display.y_prob, classifier.predict_proba(random_images)[:, 1])
