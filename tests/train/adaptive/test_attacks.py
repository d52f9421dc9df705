import numpy as np
import pytest
import torch

from s2ap_train.adaptive import AdaptiveBudget
from s2ap_train.adaptive.descent import descend
from s2ap_train.adaptive.objectives import classifier_objective
from s2ap_train.adaptive.regions import Box
from s2ap_train.adaptive.search import Descent, adaptive_attack
from s2ap_train.adaptive.systems import score_of
from s2ap_train.attacks.oblivious import fgsm, pgd, project
from s2ap_train.attacks.square import square_search
from s2ap_train.data import ImageSet
from s2ap_train.statistics.outcome import Outcome

EPS = 0.05
WEIGHT = torch.tensor([[0.8, -0.5, 0.3, 1.0]]).repeat(1, 4).reshape(16)  # ||w||_1 = 10.4
NORM = float(WEIGHT.abs().sum())


def logits(images):
    """Two classes; the margin of class 1 is w . (x - 1/2)."""
    score = (images - 0.5).flatten(1) @ WEIGHT
    return torch.stack([torch.zeros_like(score), score], dim=1)


class Linear:
    """The linear classifier as a system: it never flags, its score is its margin."""

    def __call__(self, images, labels):
        with torch.no_grad():
            values = logits(torch.from_numpy(images)).numpy().astype(np.float64)
        margin = np.where(labels == 1, values[:, 1], -values[:, 1])
        nothing = np.zeros(len(labels), dtype=np.int64)
        never = nothing.astype(bool)
        return Outcome(label=values.argmax(1), flagged=never, abstained=never, members_used=nothing, score=margin)


def view(images, path, members):
    return logits(images).log_softmax(1), None


def images_with_margins(*margins):
    """Images inside the box, labelled by their side, with the given margins of their own label."""
    labels = np.arange(len(margins)) % 2
    signed = torch.tensor([m if y == 1 else -m for m, y in zip(margins, labels, strict=True)])
    images = 0.5 + signed[:, None] * WEIGHT / WEIGHT.square().sum()
    return ImageSet(images.reshape(-1, 1, 4, 4).numpy().astype(np.float32), labels.astype(np.int64))


DATA = images_with_margins(*np.linspace(0.05, 1.0, 20))
REACHABLE = np.linspace(0.05, 1.0, 20) < EPS * NORM  # 0.52: no l_inf attack can move the margin further


def inside(attacked, data=DATA, eps=EPS):
    within = np.abs(attacked.astype(np.float64) - data.images).max() <= eps + 1e-7
    return within and attacked.min() >= 0.0 and attacked.max() <= 1.0


def test_fgsm_moves_the_margin_of_a_linear_model_by_exactly_eps_times_the_l1_norm():
    before, after = (
        Linear()(images, DATA.labels).score for images in (DATA.images, fgsm(logits, DATA, eps=EPS, seed=0))
    )
    np.testing.assert_allclose(before - after, EPS * NORM, rtol=1e-5)


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_oblivious_attacks_stay_in_the_ball_and_the_box(attack):
    dark_and_bright = np.stack([np.zeros((1, 4, 4)), np.ones((1, 4, 4))])
    data = ImageSet(np.concatenate([DATA.images[:2], dark_and_bright]).astype(np.float32), DATA.labels[:4])
    attacked = attack(logits, data, eps=EPS, seed=0)
    assert inside(attacked, data)
    assert attacked.dtype == np.float32


def test_pgd_is_reproduced_by_its_seed_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    flat = lambda images: 0 * logits(images)  # noqa: E731 - no gradient: the random start is all that happens
    first, again, other = (pgd(flat, DATA, eps=EPS, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def of_class_one(points, rows):
    return logits(points)[:, 1]


def minimum(start, lower, upper, steps):
    seen = []

    def check(points, rows):
        seen.append((points.clone(), rows.clone()))
        return torch.zeros(len(rows), dtype=torch.bool)

    descend(
        of_class_one,
        start,
        Box(lower, upper),
        steps=steps,
        first_step=2 * EPS,
        check=check,
        check_every=3,
    )
    return seen


def test_descent_reaches_the_corner_that_minimises_a_linear_function():
    x = torch.full((5, 1, 4, 4), 0.5)
    points, rows = minimum(x, x - EPS, x + EPS, steps=10)[-1]
    assert rows.tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(logits(points)[:, 1], torch.full((5,), -EPS * NORM))


def test_descent_shows_only_points_of_the_box_to_the_check():
    generator = torch.Generator().manual_seed(0)
    lower = torch.rand((6, 1, 4, 4), generator=generator) * 0.5
    upper = lower + 0.1
    for points, rows in minimum((lower + upper) / 2, lower, upper, steps=9):
        assert ((points >= lower[rows]) & (points <= upper[rows])).all()


def test_descent_finds_a_minimum_inside_the_box_by_halving_its_step():
    target = torch.full((1, 1, 4, 4), 0.4321)
    best = []

    def check(points, rows):
        best.append(float((points - target).square().sum()))
        return torch.zeros(len(rows), dtype=torch.bool)

    start = torch.full_like(target, 0.9)

    def distance(points, rows):
        return (points - target).square().flatten(1).sum(1)

    descend(
        distance,
        start,
        Box(torch.zeros_like(start), torch.ones_like(start)),
        steps=100,
        first_step=0.5,
        check=check,
    )
    assert best[-1] < 16 * 1e-3**2


def test_solved_samples_leave_the_descent():
    sizes = []

    def check(points, rows):
        sizes.append(len(rows))
        return rows == 0

    x = torch.full((3, 1, 4, 4), 0.5)
    descend(of_class_one, x, Box(x - EPS, x + EPS), steps=6, first_step=EPS, check=check, check_every=3)
    assert sizes == [3, 2, 2, 2]  # the iterate, then the best point of those that are left


QUICK = AdaptiveBudget.quick()


def attack(budget=QUICK, data=DATA, eps=EPS, **options):
    plan = [Descent(classifier_objective(kind), "none", "random") for kind in ("cross_entropy", "margin")]
    return adaptive_attack(Linear(), view, plan, data, eps=eps, budget=budget, seed=options.pop("seed", 0), **options)


def test_the_adaptive_attack_breaks_exactly_what_can_be_broken():
    result = attack()
    assert (Linear()(result.images, DATA.labels).success == REACHABLE).all()
    assert inside(result.images)
    assert sum(result.broken_by.values()) == REACHABLE.sum()


def test_more_eps_breaks_every_image_and_none_breaks_no_image():
    assert Linear()(attack(eps=0.15).images, DATA.labels).success.all()
    assert not Linear()(attack(eps=0.0).images, DATA.labels).success.any()


def test_whatever_another_attack_broke_stays_broken():
    candidate = fgsm(logits, DATA, eps=EPS, seed=0)
    broken = Linear()(candidate, DATA.labels).success
    weakest = AdaptiveBudget(steps=1, cheap_steps=1, restarts=1, targets=1)
    result = attack(budget=weakest, candidates=[candidate])
    assert Linear()(result.images, DATA.labels).success[broken].all()
    assert result.broken_by["other attack"] == broken.sum()


def test_batches_change_nothing_that_is_found():
    whole, parts = (attack(budget=AdaptiveBudget(restarts=1, steps=20, batch=batch)) for batch in (256, 3))
    assert (Linear()(whole.images, DATA.labels).success == Linear()(parts.images, DATA.labels).success).all()


def test_workers_change_nothing_that_is_found():
    alone, together = (attack(workers=workers) for workers in (1, 2))
    assert (Linear()(alone.images, DATA.labels).success == Linear()(together.images, DATA.labels).success).all()
    assert alone.broken_by == together.broken_by


def test_the_same_seed_gives_the_same_images():
    assert np.array_equal(attack(seed=3).images, attack(seed=3).images)


def test_a_budget_without_steps_is_refused():
    with pytest.raises(ValueError, match="must be positive"):
        AdaptiveBudget(steps=0)


def square(data=DATA, *, queries, seed):
    return square_search(score_of(Linear()), data.images, data.labels, eps=EPS, queries=queries, seed=seed)


def test_square_succeeds_only_where_it_can_and_stays_in_the_ball_and_the_box():
    attacked = project(square(queries=300, seed=0), DATA.images, EPS)
    success = Linear()(attacked, DATA.labels).success
    assert inside(attacked)
    assert not success[~REACHABLE].any()
    assert success.sum() >= 0.7 * REACHABLE.sum()


def test_square_returns_images_that_are_wrong_anyway_as_they_are():
    data = ImageSet(DATA.images, 1 - DATA.labels)
    assert np.array_equal(square(data, queries=5, seed=0), data.images)


def test_square_is_reproduced_by_its_seed():
    first, again = (square(queries=20, seed=1) for _ in range(2))
    assert np.array_equal(first, again)


def test_images_of_one_batch_share_their_squares_and_no_other_batch_changes_the_first():
    def found(count, **batch):
        score = score_of(Linear())
        return square_search(score, DATA.images[:count], DATA.labels[:count], eps=EPS, queries=20, seed=1, **batch)

    before = torch.get_rng_state()
    assert np.array_equal(found(12, batch_size=5)[:5], found(5))
    assert not np.array_equal(found(12), found(12, batch_size=5))
    assert torch.equal(torch.get_rng_state(), before), "the global generator is given back"
