"""Attacks on the real server in its own process."""

import socket

import numpy as np
import pytest
from tests.runtime.running_server import running
from tests.train.linear_target import task_of

from s2ap_defend.errors import RecipeError
from s2ap_train.adaptive.search import AdaptiveBudget
from s2ap_train.adaptive.systems import RIGHT
from s2ap_train.data import ImageSet
from s2ap_train.redteam.attacks.black_box import ATTACKS
from s2ap_train.redteam.attacks.served_http import ServedSystem
from s2ap_train.redteam.target import open_targets

BY_NAME = {attack.name: attack for attack in ATTACKS}
LITTLE = AdaptiveBudget(square_queries=40, decision_queries=40)


@pytest.fixture(scope="module")
def exposing(tiny_model_path):
    with running(tiny_model_path, "--expose-evidence") as server:
        yield server.address


@pytest.fixture(scope="module")
def hiding(tiny_model_path):
    with running(tiny_model_path) as server:
        yield server.address


@pytest.fixture(scope="module")
def defended(tiny_model_path):
    return open_targets(tiny_model_path)[0]


@pytest.fixture(scope="module")
def data(defended, random_images):
    labels = defended.system(random_images[:64], np.zeros(64, dtype=np.int64)).label
    labels[::4] = (labels[::4] + 1) % 10
    return ImageSet(random_images[:64], labels)


def test_what_an_exposing_server_answers_is_what_the_file_answers(exposing, defended, data):
    here = defended.system(data.images, data.labels)
    with ServedSystem(f"http://{exposing}/", test=defended.test) as system:
        assert system.exposes_evidence
        there = system(data.images, data.labels)
    for name in ("label", "flagged", "abstained", "members_used"):
        np.testing.assert_array_equal(getattr(there, name), getattr(here, name))
    # batches of another size: float32 sums in another order, through networks of some ten layers
    np.testing.assert_allclose(there.score, here.score, rtol=1e-5, atol=1e-5)
    assert here.success.any()
    assert here.flagged.any()


def test_a_hiding_server_leaves_four_levels_of_the_score_and_the_same_winners(hiding, defended, data):
    here = defended.system(data.images, data.labels)
    with ServedSystem(hiding, test=defended.test) as system:
        assert not system.exposes_evidence
        there = system(data.images, data.labels)
    np.testing.assert_array_equal(there.success, here.success)
    np.testing.assert_array_equal(there.label, here.label)
    right = here.label == data.labels
    expected = np.where(right, np.where(here.flagged, RIGHT / 2, RIGHT), np.where(here.flagged, 1.0, -1.0))
    np.testing.assert_array_equal(there.score, expected)
    assert len(np.unique(there.score)) == 4
    assert there.evidence is None


@pytest.mark.parametrize("attack", ["square", "hopskipjump"])
def test_an_attack_over_http_ends_where_the_attack_on_the_file_ends(exposing, defended, data, attack):
    few = data.subset(slice(0, 12))
    here = BY_NAME[attack].run(defended, task_of(few, budget=LITTLE))
    there = BY_NAME[f"{attack}-http"].run(defended, task_of(few, budget=LITTLE, server=exposing))
    np.testing.assert_array_equal(there.images, here.images)
    assert there.notes["evidence"]
    assert there.notes["requests"] >= 30


def test_a_server_that_hides_its_evidence_is_attacked_all_the_same(hiding, defended, data):
    few = data.subset(slice(0, 12))
    task = task_of(few, eps=0.3, budget=LITTLE, server=hiding)
    for name in ("square-http", "hopskipjump-http"):
        found = BY_NAME[name].run(defended, task)
        assert not found.notes["evidence"]
        outcome = defended.system(found.images, few.labels)
        assert outcome.success.sum() >= defended.system(few.images, few.labels).success.sum()
    blind = BY_NAME["hopskipjump"].run(defended, task)
    np.testing.assert_array_equal(found.images, blind.images)  # a decision is all that it ever asked for


def test_no_server_is_one_clear_sentence(defended, data):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(RecipeError, match=f"no server answers at 127.0.0.1:{port} .*s2ap-defend serve MODEL"):
        BY_NAME["square-http"].run(defended, task_of(data, server=f"127.0.0.1:{port}"))
    with pytest.raises(RecipeError, match="need a server of the same file; start one with s2ap-defend serve"):
        BY_NAME["square-http"].run(defended, task_of(data))


def test_a_server_that_is_gone_in_the_middle_is_one_clear_sentence(tiny_model_path, defended, data):
    with running(tiny_model_path) as server, ServedSystem(server.address, test=defended.test) as system:
        system(data.images, data.labels)
        server.process.kill()
        server.wait()
        with pytest.raises(RecipeError, match="no server answers at"):
            system(data.images, data.labels)


def test_another_model_and_another_shape_are_refused(exposing, defended, data, abstaining_model_path):
    other = open_targets(abstaining_model_path)[0]
    with pytest.raises(RecipeError, match=r"serves another model: it answers \d+ of 64 clean images otherwise"):
        BY_NAME["hopskipjump-http"].run(other, task_of(data, server=exposing))
    with ServedSystem(exposing, test=defended.test) as system:
        larger = np.zeros((2, 3, 8, 8), dtype=np.float32)
        with pytest.raises(RecipeError, match=r"shape \[3, 8, 8\], the model 'tiny' at .* takes \[1, 8, 8\]"):
            system(larger, np.zeros(2, dtype=np.int64))
        with pytest.raises(RecipeError, match=r"refused \(400\): .*divide 8-bit pixels by 255"):
            system(data.images * 255, data.labels)


def test_a_server_has_no_bare_classifier(exposing, tiny_model_path, data):
    bare = open_targets(tiny_model_path)[1]
    assert all(attack.needs_test for attack in ATTACKS if attack.needs == "server")
    with pytest.raises(RecipeError, match="no bare classifier"):
        BY_NAME["square-http"].run(bare, task_of(data, server=exposing))
