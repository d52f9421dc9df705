"""A defended file as a scikit-learn classifier, without scikit-learn."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from s2ap_defend import DefendedClassifier, InputError


@pytest.fixture(scope="module")
def classifier(tiny_model_path: Path) -> DefendedClassifier:
    return DefendedClassifier.load(tiny_model_path, device="cpu")


@pytest.fixture(scope="module")
def abstaining(abstaining_model_path: Path) -> DefendedClassifier:
    return DefendedClassifier.load(abstaining_model_path, device="cpu")


def test_predict_gives_the_final_labels_of_more_images_than_run_at_once(
    classifier: DefendedClassifier, random_images: np.ndarray
) -> None:
    many = np.concatenate([random_images, random_images[:44]])
    assert np.array_equal(classifier.predict(many), classifier(many).label)
    assert np.array_equal(classifier.classes_, np.arange(10))
    assert set(classifier.predict(many)) <= set(classifier.classes_)


@pytest.mark.parametrize("name", ["classifier", "abstaining"])
def test_shares_sum_to_one_and_the_largest_is_that_of_the_label(
    name: str, random_images: np.ndarray, request: pytest.FixtureRequest
) -> None:
    file: DefendedClassifier = request.getfixturevalue(name)
    shares = file.predict_proba(random_images)
    assert shares.shape == (256, 10)
    assert (shares >= 0).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, atol=1e-12)
    assert np.array_equal(shares.argmax(axis=1), file.predict(random_images))


def test_shares_are_votes_where_the_vote_answers_and_a_mix_of_votes_and_softmax_elsewhere(
    classifier: DefendedClassifier, random_images: np.ndarray
) -> None:
    verdicts, shares = classifier(random_images), classifier.predict_proba(random_images)
    votes = verdicts.votes / verdicts.votes.sum(axis=1, keepdims=True)
    mixed = 0.25 * verdicts.probabilities.astype(np.float64) + 0.75 * votes
    expected = np.where(verdicts.adversarial[:, None], votes, mixed)
    led = expected.argmax(axis=1) == verdicts.label
    assert led.any()
    assert (~led).any(), "the mix is taken of probabilities, not of votes"
    np.testing.assert_allclose(shares[led], expected[led], atol=1e-12)
    np.testing.assert_allclose(np.sort(shares), np.sort(expected), atol=1e-12)


def test_shares_of_a_jury_are_its_votes(abstaining: DefendedClassifier, random_images: np.ndarray) -> None:
    verdicts = abstaining(random_images)
    votes = verdicts.votes / verdicts.votes.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.sort(abstaining.predict_proba(random_images)), np.sort(votes), atol=1e-12)


def test_the_score_counts_images_that_are_answered_rightly(
    classifier: DefendedClassifier, abstaining: DefendedClassifier, random_images: np.ndarray
) -> None:
    labels = classifier.predict(random_images)
    assert classifier.score(random_images, labels) == 1.0
    assert classifier.score(random_images, (labels + 1) % 10) == 0.0
    own = abstaining.predict(random_images)
    assert abstaining.score(random_images, own) == (~abstaining(random_images).abstained).mean() < 1.0


def test_labels_that_are_no_classes_are_refused(classifier: DefendedClassifier, random_images: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"labels are int64 of shape \[3\], expected one integer for each of 2 images"):
        classifier.score(random_images[:2], [0, 1, 2])
    with pytest.raises(InputError, match=r"labels are <U1 of shape \[2\]"):
        classifier.score(random_images[:2], ["0", "1"])
    with pytest.raises(InputError, match="labels lie in 0 to 10, this file has classes 0 to 9"):
        classifier.score(random_images[:2], [0, 10])
    with pytest.raises(InputError, match="shape"):
        classifier.predict(random_images[:, :, :4])


def test_fitting_changes_nothing_and_says_that_it_is_done(classifier: DefendedClassifier) -> None:
    assert classifier.fit(None) is classifier
    assert classifier.__sklearn_is_fitted__()


def test_a_classifier_loads_and_predicts_without_scikit_learn(tiny_model_path: Path) -> None:
    code = (
        "import sys; import numpy as np; from s2ap_defend import DefendedClassifier\n"
        "classifier = DefendedClassifier.load(sys.argv[1], device='cpu')\n"
        "classifier.predict_proba(np.zeros((1, 1, 8, 8), dtype=np.float32))\n"
        "assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tiny_model_path)], check=True, timeout=120)
