import numpy as np
import pytest

from s2ap_defend.bench.rounds import alternate, exponent, latency, typical_round


def test_variants_take_turns_and_the_first_round_does_not_count():
    order: list[str] = []
    variants = {name: [lambda name=name, i=i: order.append(f"{name}{i}") for i in range(2)] for name in "ab"}
    rounds: list[int] = []
    seconds = alternate(variants, 3, after_round=lambda: rounds.append(len(order)))
    assert order == ["a0", "a1", "b0", "b1"] * 4
    assert rounds == [4, 8, 12, 16]
    assert {name: found.shape for name, found in seconds.items()} == {"a": (3, 2), "b": (3, 2)}
    assert all((found > 0).all() for found in seconds.values())


def test_a_variant_that_is_never_asked_takes_no_time():
    seconds = alternate({"asked": [dict], "not asked": []}, 2)
    assert typical_round(seconds["not asked"]) == 0.0


def test_a_call_that_something_else_delayed_in_some_rounds_counts_as_in_the_others():
    seconds = np.array([[1.0, 2.0], [100.0, 2.0], [1.0, 50.0]])
    assert typical_round(seconds) == 3.0


def test_latency_is_in_multiples_of_the_bare_classifier_and_of_the_floor():
    bare, defended = np.full((5, 4), 0.25), np.full((5, 4), 1.0)
    found = latency(defended, bare, images=8, floor_s=0.1)
    assert (found.p50_ms, found.p95_ms, found.p99_ms) == (1000.0, 1000.0, None)
    assert (found.images_per_s, found.times_bare, found.times_floor) == (2.0, 4.0, pytest.approx(10.0))


@pytest.mark.parametrize(("calls", "known"), [(19, (False, False)), (20, (True, False)), (100, (True, True))])
def test_a_quantile_is_given_only_where_calls_lie_beyond_it(calls, known):
    found = latency(np.ones((1, calls)), np.ones((1, calls)), images=1, floor_s=None)
    assert (found.p95_ms is not None, found.p99_ms is not None) == known
    assert found.times_floor is None


def test_the_exponent_is_the_slope_over_the_sizes_in_logarithms():
    assert exponent([1, 8, 64], [3.0, 24.0, 192.0]) == pytest.approx(1.0)
    assert exponent([1, 4, 16], [1.0, 2.0, 4.0]) == pytest.approx(0.5)
    assert exponent([8], [1.0]) is None
