import numpy as np
import pytest

from s2ap_defend import DefendedClassifier
from s2ap_defend.bench.asked import Stages, cut_stages
from s2ap_defend.model_file import open_model_file
from s2ap_defend.stages import CLASSIFIER, CLASSIFIER_AGAIN, PURIFIER, wave_sizes


@pytest.fixture(scope="module", params=["version-4", "version-4-abstaining"])
def path(request, golden):
    return golden / f"{request.param}.onnx"


def started(path):
    file = open_model_file(path)
    return Stages.start(file, cut_stages(file), "cpu", 1)


@pytest.fixture(scope="module")
def runs(path, random_images):
    return started(path).runs(random_images)


@pytest.fixture(scope="module")
def verdicts(path, random_images):
    return DefendedClassifier.load(path, device="cpu", threads=1)(random_images)


def test_members_are_asked_about_all_that_waits_for_anyone_of_their_wave(path, runs, verdicts):
    manifest = open_model_file(path).manifest
    asked = np.array([run.rows for run in runs if run.scope.startswith("member_")])
    waves = np.split(asked, np.cumsum(wave_sizes(manifest.to_test(), manifest.decision.purify))[:-1])
    assert all((wave == wave[0]).all() for wave in waves)
    assert (asked.sum(axis=0) >= verdicts.members_used).all()
    assert asked[: manifest.test.opening].all()
    assert asked[:, verdicts.members_used == len(asked)].all()


def test_the_purifier_is_asked_about_what_the_file_purifies(path, runs, verdicts):
    by_scope = {run.scope: run for run in runs}
    np.testing.assert_array_equal(by_scope[PURIFIER].rows, verdicts.reconstruction_error > 0)
    assert by_scope[CLASSIFIER].rows.all()
    purified = open_model_file(path).manifest.decision.purify == "always"
    last = by_scope[CLASSIFIER] if purified else by_scope[CLASSIFIER_AGAIN]
    np.testing.assert_array_equal(last.rows, by_scope[PURIFIER].rows)
    np.testing.assert_allclose(last.images[last.rows], verdicts.purified[last.rows], atol=1e-5)


def test_stages_stand_in_the_order_in_which_the_file_runs_them(path, runs):
    scopes = [run.scope for run in runs]
    manifest = open_model_file(path).manifest
    assert scopes.index(PURIFIER) == (0 if manifest.decision.purify == "always" else 1 + manifest.test.opening)
    assert [scope for scope in scopes if scope.startswith("member_")] == sorted(
        scope for scope in scopes if scope.startswith("member_")
    )
