import json
import math

import numpy as np
import pytest
import torch

from s2ap_defend.errors import RecipeError
from s2ap_train.measures.benchmark import Benchmark, BenchmarkAttack, before_after, measure_benchmark
from s2ap_train.statistics.paired import agresti_min, mcnemar, paired_difference, seed_difference

ATTACK = {"eps": 0.1, "seed": 0, "steps": 5, "restarts": 2}


def planted(lost, gained, both, neither):
    before = np.array([True] * (lost + both) + [False] * (gained + neither))
    after = np.array([False] * lost + [True] * (both + gained) + [False] * neither)
    return before, after


def linear(images):
    """Two classes: right for label 0 by the pixel's distance to 0.5."""
    pixel = images.flatten(1)[:, :1]
    return torch.cat([pixel - 0.5, 0.5 - pixel], dim=1)


def pixels(*values):
    return torch.tensor(values)[:, None, None, None], torch.zeros(len(values), dtype=torch.int64)


def test_the_difference_counts_discordant_images():
    difference = paired_difference(*planted(lost=3, gained=8, both=50, neither=39))
    assert (difference.before, difference.after, difference.difference) == pytest.approx((0.53, 0.58, 0.05))
    assert (difference.lost, difference.gained, difference.samples) == (3, 8, 100)
    # Agresti and Min: b = 3.5, c = 8.5, n = 102: (5 +- 1.959964 sqrt(12 - 25 / 102)) / 102
    half = 1.959964 * math.sqrt(12 - 25 / 102) / 102
    assert difference.interval == pytest.approx((5 / 102 - half, 5 / 102 + half), abs=1e-6)
    # exact binomial: twice the probability of at most 3 of 11 with one half: 2 (1 + 11 + 55 + 165) / 2048
    assert difference.p_value == pytest.approx(464 / 2048)


def test_before_and_after_exchanged_change_the_sign_only():
    before, after = planted(lost=3, gained=8, both=50, neither=39)
    forward, backward = paired_difference(before, after), paired_difference(after, before)
    assert backward.interval == pytest.approx((-forward.interval[1], -forward.interval[0]))
    assert backward.p_value == forward.p_value


def test_pairs_are_sharper_than_two_independent_samples():
    """The same two accuracies, 0.53 and 0.58 of 100 images, unpaired: +- 1.96 sqrt(p q / n + p q / n) = 0.138."""
    low, high = paired_difference(*planted(lost=3, gained=8, both=50, neither=39)).interval
    assert (high - low) / 2 < 1.96 * math.sqrt((0.53 * 0.47 + 0.58 * 0.42) / 100) / 2


def test_without_any_discordant_image_the_interval_is_not_empty_and_nothing_is_significant():
    difference = paired_difference(*planted(0, 0, 20, 0))
    assert difference.p_value == 1.0
    assert difference.interval[0] < 0 < difference.interval[1]


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Cells (lost, gained) with probabilities (0.1, 0.2), 60 images, 2,000 times; nominal 0.95."""
    draws = np.random.default_rng(0).multinomial(60, [0.1, 0.2, 0.7], size=2000)
    covered = [low <= 0.1 <= high for low, high in (agresti_min(int(b), int(c), 60) for b, c, _ in draws)]
    assert abs(np.mean(covered) - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000) + 0.01  # and a point for its approximation


def test_the_one_sided_test_asks_whether_more_are_lost():
    assert mcnemar(5, 0, alternative="greater") == pytest.approx(1 / 32)
    assert mcnemar(0, 5, alternative="greater") == 1.0
    assert mcnemar(0, 0, alternative="greater") == 1.0


def test_a_difference_over_seeds_by_hand():
    """Differences 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.302653."""
    difference = seed_difference([0.0, 1.0, 2.0], [1.0, 3.0, 5.0])
    assert (difference.count, difference.mean, difference.std) == (3, 2.0, 1.0)
    assert difference.interval == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-6)


def test_one_seed_has_a_difference_but_no_interval():
    difference = seed_difference([0.25], [0.5])
    assert (difference.mean, difference.std, difference.interval) == (0.25, None, None)


def test_unpaired_arrays_are_refused():
    with pytest.raises(ValueError, match="the same images twice; got 3 and 2"):
        paired_difference(np.ones(3, dtype=bool), np.ones(2, dtype=bool))
    with pytest.raises(ValueError, match="the same seeds; got 2 and 1"):
        seed_difference([1.0, 2.0], [1.0])


def test_a_benchmark_of_a_model_whose_margins_are_known():
    """Pixels 0.4 (wrong), 0.55 (right, within eps of the boundary) and 0.7 (right, out of reach)."""
    images, labels = pixels(0.4, 0.55, 0.7)
    found = measure_benchmark(linear, images, labels, **ATTACK, name="linear", batch_size=2)
    assert found.predicted.tolist() == [1, 0, 0]
    assert found.clean.tolist() == [False, True, True]
    assert found.fgsm.tolist() == found.pgd.tolist() == found.robust.tolist() == [False, False, True]
    assert (found.clean_accuracy, found.fgsm_accuracy, found.robust_accuracy) == pytest.approx((2 / 3, 1 / 3, 1 / 3))


def test_restarts_take_the_worst_case_of_each_image():
    """A model that is wrong on a thin shell which few random starts reach and whose gradient is 0."""
    images = torch.full((64, 1, 4, 4), 0.5)
    labels = torch.zeros(64, dtype=torch.int64)

    def lottery(x):
        wrong = (x.mean((1, 2, 3)) > 0.52).float() + 0 * x.sum((1, 2, 3))
        return torch.stack([1 - wrong, wrong], dim=1)

    runs = [
        measure_benchmark(lottery, images, labels, eps=0.1, seed=0, steps=1, restarts=restarts).pgd
        for restarts in (1, 2, 5)
    ]
    assert runs[0].mean() > runs[1].mean() > runs[2].mean() > 0
    assert not (~runs[0] & runs[1]).any()  # what one start broke stays broken
    assert not (~runs[1] & runs[2]).any()


def test_two_networks_are_attacked_from_the_same_points():
    """Whatever the other broke: starts depend on seed, restart and position alone."""
    images, labels = torch.full((8, 1, 2, 2), 0.5), torch.zeros(8, dtype=torch.int64)
    seen: dict[str, list[torch.Tensor]] = {"first": [], "second": []}

    def recording(name, bias):
        def model(x):
            if x.requires_grad:
                seen[name].append(x.detach().clone())
            return torch.stack([x.sum((1, 2, 3)) * 0 + bias, x.sum((1, 2, 3))], dim=1)

        return model

    attack = {"eps": 0.1, "seed": 0, "steps": 1, "restarts": 2}
    measure_benchmark(recording("first", 2.1), images, labels, **attack, batch_size=4)
    measure_benchmark(recording("second", 9.0), images, labels, **attack, batch_size=4)
    second = {tuple(x.flatten().tolist()) for x in seen["second"]}
    assert {tuple(x.flatten().tolist()) for x in seen["first"]} <= second
    assert (
        len(second) == 1 + 2 * 2
    )  # the clean image for FGSM; two restarts in each of two batches, for both objectives


def test_the_margin_breaks_what_a_vanishing_cross_entropy_does_not():
    """Logits scaled until the softmax underflows: the gradient of the cross-entropy is 0, that of the margin is not."""

    def hot(x):  # reads the mean of 64 pixels, which no random start moves far
        return 1e4 * linear(x.mean((1, 2, 3), keepdim=True))

    images = torch.tensor([0.55, 0.7])[:, None, None, None].expand(2, 1, 8, 8)
    found = measure_benchmark(hot, images, torch.zeros(2, dtype=torch.int64), **ATTACK)
    assert found.pgd.tolist() == [True, True]
    assert found.robust.tolist() == [False, True]


def test_the_cross_entropy_breaks_what_the_margin_does_not():
    """The strongest other class is constant, so the margin has no gradient; the weaker one wins half-way to the edge.

    FGSM walks past that place; steps of half of eps end there or go round it.
    """

    def two_rivals(x):
        moved = (x.mean((1, 2, 3)) - 0.5).clamp(-0.1, 0.1)
        rival = 0.5 + 20 * (0.05 - (moved - 0.05).abs())
        return torch.stack([torch.ones_like(moved), 0.9 + 0 * moved, rival], dim=1)

    images, labels = torch.full((3, 1, 8, 8), 0.5), torch.zeros(3, dtype=torch.int64)
    found = measure_benchmark(two_rivals, images, labels, **ATTACK)
    assert found.fgsm.tolist() == [True] * 3
    assert found.pgd.tolist() == found.robust.tolist()
    assert not found.pgd.all()


def test_an_image_that_is_broken_is_not_attacked_again():
    attacked = []

    def counting(x):
        attacked.append(len(x)) if x.requires_grad else None
        return linear(x)

    images, labels = pixels(0.4, 0.55, 0.9)
    measure_benchmark(counting, images, labels, eps=0.1, seed=0, steps=1, restarts=1)
    # FGSM on all; one run of PGD on the two that are right; one on the margin for the one that still is
    assert attacked == [3, 2, 1]


def test_a_benchmark_survives_json_bit_by_bit():
    images, labels = pixels(*np.linspace(0.3, 0.8, 21, dtype=np.float32).tolist())
    found = measure_benchmark(linear, images, labels, **ATTACK, name="linear")
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    again = Benchmark.from_json(document)
    assert again.to_json() == found.to_json()
    assert np.array_equal(again.pgd, found.pgd)
    assert again.attack == BenchmarkAttack(**ATTACK)
    assert document["robust_accuracy"] == found.robust_accuracy


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("samples"),
        lambda d: d["correct"].update(pgd="ff" * 9),
        lambda d: d["correct"].update(clean="zz"),
        lambda d: d.update(robust_accuracy=0.99),
        lambda d: d["predicted"].pop(),
        lambda d: d["attack"].update(eps=-1.0),
    ],
)
def test_a_damaged_benchmark_is_refused(damage):
    document = measure_benchmark(linear, *pixels(0.4, 0.55, 0.7), **ATTACK).to_json()
    damage(document)
    with pytest.raises(RecipeError):
        Benchmark.from_json(document)


def test_before_and_after_are_compared_on_the_same_images_and_attack_only():
    before = measure_benchmark(linear, *pixels(0.4, 0.55, 0.7), **ATTACK, name="dense")
    after = measure_benchmark(lambda x: linear(x + 0.15), *pixels(0.4, 0.55, 0.7), **ATTACK, name="pruned")
    difference = before_after(before, after)
    assert (difference["clean"].gained, difference["pgd"].gained, difference["pgd"].lost) == (1, 1, 0)
    assert difference["pgd"].to_json()["difference"] == pytest.approx(1 / 3)
    other_images = measure_benchmark(linear, *pixels(0.4, 0.55, 0.71), **ATTACK, name="pruned")
    with pytest.raises(RecipeError, match="dense and pruned are not comparable: the images differ"):
        before_after(before, other_images)
    other_attack = measure_benchmark(linear, *pixels(0.4, 0.55, 0.7), eps=0.2, seed=0, name="pruned")
    with pytest.raises(RecipeError, match=r"the attack differ.*eps=0\.1.*eps=0\.2"):
        before_after(before, other_attack)


@pytest.mark.parametrize("settings", [{"eps": 0.0}, {"eps": math.nan}, {"steps": 0}, {"restarts": 0}])
def test_what_is_no_attack_is_refused(settings):
    with pytest.raises(RecipeError, match="this is no attack"):
        BenchmarkAttack(**{"eps": 0.1, **settings})


def test_a_benchmark_without_images_is_refused():
    with pytest.raises(RecipeError, match="found 0 images"):
        measure_benchmark(linear, torch.empty(0, 1, 2, 2), torch.empty(0, dtype=torch.int64), **ATTACK)
