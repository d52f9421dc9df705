import numpy as np
import pytest
from scipy import stats

from s2ap_train.statistics.paired import images_needed, paired_difference


def effect(gained, lost, samples):
    row = np.arange(samples)
    return paired_difference((row >= gained) & (row < gained + lost), row < gained)


def test_the_number_of_images_is_that_of_connor():
    # .125 discordant, .25 / 6 gained net: (1.959964 sqrt(.125) + .841621 sqrt(.125 - .0017361))^2 / .0017361 = 562.3
    assert images_needed(effect(10, 5, 120)) == 563


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (3, 3), (2, 5)])
def test_where_nothing_was_gained_no_number_would_do(gained, lost):
    assert images_needed(effect(gained, lost, 100)) is None


def test_with_so_many_images_such_a_gain_is_found_four_times_in_five():
    found = effect(12, 4, 400)
    count, rng = images_needed(found), np.random.default_rng(0)
    draws = rng.multinomial(count, (12 / 400, 4 / 400, 384 / 400), size=2000)
    p_values = [stats.binomtest(int(g), int(g + lost), 0.5).pvalue if g + lost else 1.0 for g, lost, _ in draws]
    # the exact test needs a little more than the normal approximation says
    assert 0.7 < np.mean(np.array(p_values) < 0.05) < 0.83
