import math

import numpy as np
import pytest
import torch
from tests.train.linear_target import task_of, with_margin
from tests.train.toy_classifier import WEIGHTS

from s2ap_train.adaptive.search import AdaptiveBudget
from s2ap_train.attacks.budget import distortion
from s2ap_train.attacks.hopskipjump import gradient_questions, hop_skip_jump
from s2ap_train.attacks.one_pixel import one_pixel, pixel_search
from s2ap_train.data import ImageSet
from s2ap_train.redteam.attacks.attack import RedTeamAttack
from s2ap_train.redteam.attacks.black_box import ATTACKS, decision_attack, starting_images
from s2ap_train.redteam.target import open_targets
from s2ap_train.statistics.outcome import Outcome

IN_PROCESS = [attack for attack in ATTACKS if attack.needs is None]
BY_NAME = {attack.name: attack for attack in ATTACKS}
LENGTH, REACH = float(WEIGHTS.norm()), float(WEIGHTS.abs().sum())
LITTLE = AdaptiveBudget(square_queries=60, decision_queries=60)


class Plane:
    """The attacker wins where w (x - 1/2) < -margin; it counts what it is asked about each row."""

    def __init__(self, margin, rows):
        self.margin, self.asked = margin, np.zeros(rows, dtype=int)

    def __call__(self, images, rows):
        np.add.at(self.asked, rows, 1)
        return (images.reshape(len(images), -1) - 0.5) @ WEIGHTS.numpy() < -self.margin


def never_wins(images, rows):
    return np.zeros(len(images), dtype=bool)


def always_wins(images, rows):
    return np.ones(len(images), dtype=bool)


def grey_and_starts(count):
    """Grey images, and for each a random start beyond the plane of margin .3, far off its normal."""
    clean = np.full((count, 1, 4, 4), 0.5, dtype=np.float32)
    drawn = np.random.default_rng(0).random((100 * count, 1, 4, 4), dtype=np.float32)
    return clean, drawn[Plane(0.35, len(drawn))(drawn, np.arange(len(drawn)))][:count]


def test_the_distance_to_a_plane_is_found_up_to_the_error_of_the_estimated_normal():
    count, margin, queries = 8, 0.3, 1500
    clean, starts = grey_and_starts(count)
    plane = Plane(margin, count)
    found = hop_skip_jump(plane, clean, starts, norm="l2", queries=queries, seed=0)
    true, first = margin / LENGTH, gradient_questions(queries)
    assert (found.distance >= true * (1 - 1e-5)).all()  # nothing that wins is nearer, up to float32
    # A step from tangent t moves to (t + s tan(error)) / (1 + s), s = cos(error) / sqrt(step). B signs in d dimensions
    # estimate the normal with tan(error) = sqrt(pi (d - 1) / (2 B)), times e^(1/2) where the walk stands a whole
    # deviation of its probes from the border; the norm of its 15 errors exceeds that by half with probability 1e-3.
    beyond = (starts - clean).reshape(count, -1) @ WEIGHTS.numpy() / LENGTH
    aside = np.sqrt(((starts - clean) ** 2).sum((1, 2, 3)) - beyond**2)
    tangent, left, step = float((aside / -beyond).max()), queries - 20, 0
    while left > (probes := int(first * math.sqrt(step + 1))) + 30:  # two searches of at most 30 questions
        error = 1.5 * math.exp(0.5) * math.sqrt(math.pi * 15 / (2 * probes))
        s = math.cos(math.atan(error)) / math.sqrt(step + 1)
        tangent, left, step = (tangent + s * error) / (1 + s), left - probes - 30, step + 1
    assert tangent < 0.6 * float((aside / -beyond).max())  # what would be found without any step
    assert (found.distance <= true * math.sqrt(1 + tangent**2)).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_within_a_radius_it_wins_well_above_the_true_distance_and_never_below(norm):
    count, margin = 6, 0.3
    clean, starts = grey_and_starts(count)
    true = margin / (REACH if norm == "linf" else LENGTH)
    for factor, wins in ((2.0, True), (0.99, False)):
        plane = Plane(margin, count)
        found = hop_skip_jump(plane, clean, starts, norm=norm, queries=600, seed=0, radius=factor * true)
        linf, l2, _ = distortion(clean, found.images)
        np.testing.assert_allclose(found.distance, linf if norm == "linf" else l2, rtol=1e-6)
        assert (found.distance <= factor * true).all() == wins
        assert (found.distance >= true * (1 - 1e-5)).all()
        assert (plane.asked < 600).all() == wins  # who has arrived asks no more
        assert plane(found.images, np.arange(count)).all()


@pytest.mark.parametrize("queries", [1, 2, 3, 50, 301])
def test_no_image_is_asked_about_more_often_than_allowed(queries):
    clean, starts = grey_and_starts(5)
    plane = Plane(0.3, 5)
    found = hop_skip_jump(plane, clean, starts, norm="linf", queries=queries, seed=0)
    assert (plane.asked == found.queries).all()
    assert plane.asked.max() <= max(queries, 2)  # the clean image and the start are always asked about
    if queries > 3:
        assert plane.asked.max() >= queries - 1


def test_without_a_start_that_wins_nothing_is_walked_and_nothing_hangs():
    clean, starts = grey_and_starts(4)
    never = hop_skip_jump(never_wins, clean, starts, norm="l2", queries=99, seed=0)
    np.testing.assert_array_equal(never.images, clean)
    assert np.isinf(never.distance).all()
    assert (never.queries == 2).all()
    always = hop_skip_jump(always_wins, clean, starts, norm="l2", queries=99, seed=0)
    np.testing.assert_array_equal(always.images, clean)
    assert (always.distance == 0).all()
    with pytest.raises(ValueError, match="at least one query"):
        hop_skip_jump(Plane(0.1, 4), clean, starts, norm="l2", queries=0, seed=0)


def test_a_border_that_is_nearer_than_any_step_ends_the_walk():
    clean, starts = grey_and_starts(2)

    def everything_else_wins(images, rows):
        return (images != clean[rows]).any(axis=(1, 2, 3))

    found = hop_skip_jump(everything_else_wins, clean, starts, norm="l2", queries=2000, seed=0)
    assert (found.distance < 1e-4).all()
    assert found.queries.max() <= 2000


def test_some_images_walk_where_others_cannot():
    clean, starts = grey_and_starts(4)
    starts[1] = clean[1]
    plane = Plane(0.3, 4)
    found = hop_skip_jump(plane, clean, starts, norm="l2", queries=200, seed=0)
    assert np.isinf(found.distance).tolist() == [False, True, False, False]
    np.testing.assert_array_equal(found.images[1], clean[1])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_answers_that_contradict_each_other_cannot_stop_the_walk(norm):
    clean, starts = grey_and_starts(4)
    plane, generator = Plane(0.3, 4), np.random.default_rng(0)

    def fickle(images, rows):
        return plane(images, rows) ^ (generator.random(len(images)) < 0.1)

    found = hop_skip_jump(fickle, clean, starts, norm=norm, queries=400, seed=0)
    assert plane.asked.max() <= 400
    assert found.images.shape == clean.shape


def test_the_walk_is_decided_by_its_seed_and_leaves_the_global_generator_alone():
    clean, starts = grey_and_starts(3)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, second, other = (
        hop_skip_jump(Plane(0.3, 3), clean, starts, norm="l2", queries=150, seed=seed).images for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()
    assert torch.equal(torch.random.get_rng_state(), before)


class Told:
    """A system with one answer for each image that it knows, by its first pixel."""

    def __init__(self, label, flagged, abstained):
        self.told = np.array(label), np.array(flagged), np.array(abstained)

    def __call__(self, images, labels):
        number = np.minimum((images[:, 0, 0, 0] * 10).round().astype(int), len(self.told[0]) - 1)
        label, flagged, abstained = (values[number] for values in self.told)
        won = (label != labels) & ~flagged & ~abstained
        return Outcome(label, flagged, abstained, np.zeros(len(label), int), np.where(won, -1.0, 1.0))


def numbered(count):
    return np.stack([np.full((1, 2, 2), n / 10, dtype=np.float32) for n in range(count)])


def test_the_start_is_the_nearest_image_of_another_class_that_is_accepted():
    data = ImageSet(numbered(6), np.array([0, 1, 0, 1, 2, 0]))
    # 1 is flagged, 2 not answered; noise is far from what is known, and answered like the last: class 0
    system = Told(
        [0, 1, 1, 1, 2, 0], [False, True, False, False, False, False], [False, False, True, False, False, False]
    )
    starts = starting_images(system, data, norm="linf", seed=0)
    np.testing.assert_array_equal(starts[:, 0, 0, 0].round(3), data.images[[3, 0, 3, 4, 3, 4], 0, 0, 0].round(3))


def test_where_no_clean_image_will_do_noise_may_and_else_there_is_no_start():
    data = ImageSet(numbered(2), np.array([0, 0]))
    for label_of_the_rest, flagged, starts in ((1, False, True), (1, True, False), (0, False, False)):
        system = Told([0, 0, label_of_the_rest], [False, False, flagged], [False] * 3)
        found = starting_images(system, data, norm="l2", seed=0)
        assert (found != data.images).any() == starts


class Counting:
    """A system that counts the images that it is asked about."""

    def __init__(self, system):
        self.system, self.asked = system, 0

    def __call__(self, images, labels):
        self.asked += len(images)
        return self.system(images, labels)


def test_a_decision_attack_asks_no_more_than_its_queries():
    target, data = with_margin(WEIGHTS, 0.3, 1)
    bright = np.where(WEIGHTS.numpy() > 0, 0.0, 1.0).reshape(1, 1, 4, 4).astype(np.float32)
    data = ImageSet(np.concatenate([data.images, bright]), np.array([1, 0]))
    system = Counting(target.system)
    decision_attack(system, data, norm="l2", radius=1e-3, queries=100, seed=0)
    assert 2 * 95 < system.asked <= 2 * 100 + 5  # five are about noise


def test_a_decision_attack_outside_the_ball_returns_clean_images():
    target, data = with_margin(WEIGHTS, 0.3, 2)
    bright = np.where(WEIGHTS.numpy() > 0, 0.0, 1.0).reshape(1, 1, 4, 4).astype(np.float32)
    data = ImageSet(np.concatenate([data.images, bright]), np.array([1, 1, 0]))
    for factor, wins in ((1.5, True), (0.9, False)):
        radius = factor * 0.3 / LENGTH
        images, notes = decision_attack(target.system, data, norm="l2", radius=radius, queries=400, seed=0)
        assert (distortion(data.images, images)[1] <= radius * (1 + 1e-6)).all()
        assert target.system(images, data.labels).success[:2].tolist() == [wins, wins]
        assert (images[:2] == data.images[:2]).all() != wins
        assert notes["started"] == 3
        assert notes["mean_queries"] <= 400


@pytest.mark.parametrize(("margin", "wins"), [(0.448, True), (0.452, False)])
def test_the_pixel_search_by_score_wins_where_one_pixel_is_enough_and_only_there(margin, wins):
    target, data = with_margin(WEIGHTS, margin, 3)  # the largest |w| is .9, and a grey pixel moves by .5
    found = pixel_search(
        lambda images, labels: target.system(images, labels).score,
        data.images,
        data.labels,
        seed=0,
        pixels=1,
        population=60,
        generations=40,
    )
    assert (distortion(data.images, found)[2] <= 1).all()
    assert target.system(found, data.labels).success.all() == wins
    assert (found.reshape(3, -1).argmax(1) == int(WEIGHTS.abs().argmax())).all()


def test_the_pixel_search_asks_as_often_as_it_says_while_it_has_not_won():
    asked = []

    def hardly_lost(images, labels):
        asked.append(len(images))
        return np.full(len(images), 1e-9)

    _, data = with_margin(WEIGHTS, 0.3, 3)
    pixel_search(hardly_lost, data.images, data.labels, seed=0, pixels=1, population=6, generations=4)
    assert sum(asked) == 3 * (1 + 6 * 5)


def test_the_pixel_search_by_probability_is_the_one_pixel_attack():
    target, data = with_margin(WEIGHTS, 0.6, 4)

    def probability(images, labels):
        p = target.classify(torch.from_numpy(images)).softmax(1)[:, 1].double().numpy()
        return np.where(p < 0.5, p - 1, p)

    settings = {"seed": 3, "pixels": 2, "population": 12, "generations": 6}
    np.testing.assert_array_equal(
        pixel_search(probability, data.images, data.labels, **settings),
        one_pixel(target.classify, data.images, data.labels, **settings),
    )


def test_what_succeeds_already_is_left_as_it_is():
    target, data = with_margin(WEIGHTS, -0.1, 2)
    for attack in IN_PROCESS:
        np.testing.assert_array_equal(attack.run(target, task_of(data, budget=LITTLE)).images, data.images)


def test_square_wins_within_reach_of_the_sign_and_not_beyond():
    for factor, wins in ((0.5, True), (1.01, False)):
        target, data = with_margin(WEIGHTS, factor * 0.1 * REACH, 4)
        found = BY_NAME["square"].run(target, task_of(data, budget=AdaptiveBudget(square_queries=400)))
        assert target.system(found.images, data.labels).success.all() == wins


@pytest.mark.parametrize("attack", IN_PROCESS, ids=lambda attack: attack.name)
def test_every_attack_keeps_to_its_budget_and_its_seed(attack: RedTeamAttack, tiny_model_path, random_images):
    data = ImageSet(random_images[:8], np.arange(8, dtype=np.int64))
    task = task_of(data, eps=0.05, l2=0.4, pixels=2, budget=LITTLE)
    for target in open_targets(tiny_model_path):
        first, second = (attack.run(target, task).images for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert first.dtype == np.float32
        assert 0.0 <= first.min() <= first.max() <= 1.0
        norms = dict(zip(("linf", "l2", "l0"), distortion(data.images, first), strict=True))
        budget = {"linf": 0.05, "l2": 0.4, "l0": 2}[attack.norm]
        assert norms[attack.norm].max() <= budget * (1 + 1e-6)


def test_no_pixels_to_change_leaves_the_images_alone():
    target, data = with_margin(WEIGHTS, 0.1, 2)
    found = BY_NAME["one-pixel-served"].run(target, task_of(data, pixels=0))
    np.testing.assert_array_equal(found.images, data.images)
