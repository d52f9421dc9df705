"""The drift monitor: uniform without drift, loud with it; and what a server tells of it."""

import math
import threading
import tracemalloc

import numpy as np
import pytest

from s2ap_defend import DriftMonitor, InputError, ModelFileError, RecipeError, Verdicts
from s2ap_defend.drift import kolmogorov_survival
from s2ap_defend.model_file import open_model_file


def served(ratios, flagged=None) -> Verdicts:
    """Verdicts of N one-pixel images with these log-likelihood ratios."""
    ratios = np.asarray(ratios, dtype=np.float64)
    count = len(ratios)
    return Verdicts(
        label=np.zeros(count, dtype=np.int64),
        adversarial=np.zeros(count, dtype=bool) if flagged is None else np.asarray(flagged),
        base_label=np.zeros(count, dtype=np.int64),
        probabilities=np.ones((count, 1), dtype=np.float32),
        label_change_rate=np.zeros(count, dtype=np.float32),
        log_likelihood_ratio=ratios,
        members_used=np.ones(count, dtype=np.int64),
        votes=np.ones((count, 1)),
        purified=np.zeros((count, 1, 1, 1), dtype=np.float32),
        reconstruction_error=np.zeros(count, dtype=np.float32),
        abstained=np.zeros(count, dtype=bool),
    )


def within_three_standard_errors(rate: float, nominal: float, draws: int) -> bool:
    return abs(rate - nominal) <= 3.0 * math.sqrt(nominal * (1.0 - nominal) / draws)


def test_kolmogorovs_distribution_has_its_tabulated_quantiles() -> None:
    # Smirnov 1948: K .8276 has half of the mass above, 1.3581 five percent, 1.6276 one percent.
    for x, above in ((0.8276, 0.5), (1.3581, 0.05), (1.6276, 0.01), (0.4410, 0.99)):
        assert kolmogorov_survival(x) == pytest.approx(above, abs=5e-5)
    assert kolmogorov_survival(0.0) == 1.0
    assert kolmogorov_survival(1.0 - 1e-12) == pytest.approx(kolmogorov_survival(1.0), abs=1e-10)


def test_two_inputs_have_the_distance_that_paper_and_pencil_give() -> None:
    # Among the references 1 .. 999 the p-values are .2 and .5 within 1/1000; their steps are 0, .5, 1.
    report = DriftMonitor(np.arange(1.0, 1000.0)).update(served([800.5, 500.5], [True, False]))
    assert report.statistic == pytest.approx(0.5, abs=2e-3)
    assert report.mean_p_value == pytest.approx(0.35, abs=2e-3)
    assert report.flagged == 0.5
    assert (report.count, report.window) == (2, 2)
    effective = math.sqrt(2.0 * 999.0 / 1001.0)
    assert report.p_value == pytest.approx(
        kolmogorov_survival((effective + 0.12 + 0.11 / effective) * report.statistic)
    )


@pytest.mark.parametrize(
    ("ratio", "low", "high"), [(5.0, 0.0, 0.25), (2.0, 0.0, 0.5), (1.5, 0.25, 0.5), (0.0, 0.75, 1.0)]
)
def test_a_p_value_is_uniform_between_the_ranks_that_ties_allow(ratio: float, low: float, high: float) -> None:
    # Among 1, 1, 2 and itself: 5 is first of four, 2 shares the first two places, 1.5 is second, 0 is last.
    report = DriftMonitor([1.0, 1.0, 2.0], window=5000).update(served(np.full(5000, ratio)))
    spread = (high - low) / math.sqrt(12.0 * 5000)
    assert abs(report.mean_p_value - (low + high) / 2.0) <= 3.0 * spread


def test_nothing_served_is_no_drift() -> None:
    report = DriftMonitor([0.0]).report()
    assert (report.count, report.window, report.statistic, report.p_value, report.drifted) == (0, 0, 0.0, 1.0, False)
    assert report.log_martingale == 0.0
    assert math.isnan(report.mean_p_value)
    assert math.isnan(report.flagged)


def test_one_look_raises_false_alarms_at_its_nominal_rate() -> None:
    draws, rng = 2000, np.random.default_rng(1)
    p_values = []
    for seed in range(draws):
        monitor = DriftMonitor(rng.normal(size=150), window=80, seed=seed)
        p_values.append(monitor.update(served(rng.normal(size=80))).p_value)
    for level in (0.05, 0.2):
        assert within_three_standard_errors(np.mean(np.array(p_values) <= level), level, draws)


def test_ties_are_conservative_and_unbiased() -> None:
    draws, rng = 600, np.random.default_rng(2)
    chances = [0.7, 0.2, 0.06, 0.04]
    reports = []
    for seed in range(draws):
        monitor = DriftMonitor(rng.choice([-2.0, -1.0, 0.5, 3.0], 150, p=chances), window=80, seed=seed)
        reports.append(monitor.update(served(rng.choice([-2.0, -1.0, 0.5, 3.0], 80, p=chances))))
    rate = np.mean([report.p_value <= 0.05 for report in reports])
    assert rate <= 0.05 + 3.0 * math.sqrt(0.05 * 0.95 / draws)
    means = np.array([report.mean_p_value for report in reports])
    assert abs(means.mean() - 0.5) <= 3.0 * means.std() / math.sqrt(draws)
    same = DriftMonitor([1.0] * 50).update(served([1.0] * 500))
    assert same.p_value > 0.01
    assert not same.drifted


def test_the_alarm_that_is_watched_all_the_time_keeps_its_level() -> None:
    # A small reference and a long stream: ranks against the reference alone would raise it almost surely.
    draws, level, rng = 120, 0.1, np.random.default_rng(3)
    alarms = 0
    for seed in range(draws):
        monitor = DriftMonitor(rng.normal(size=15), level=level, seed=seed)
        alarms += monitor.update(served(rng.normal(size=1000))).drifted
    assert alarms / draws <= level + 3.0 * math.sqrt(level * (1.0 - level) / draws)


def test_the_martingale_has_mean_one() -> None:
    rng = np.random.default_rng(4)
    capital = np.array(
        [
            math.exp(
                DriftMonitor(rng.integers(0, 3, 4), seed=seed).update(served(rng.integers(0, 3, 6))).log_martingale
            )
            for seed in range(3000)
        ]
    )
    assert capital.std() > 0.05
    assert abs(capital.mean() - 1.0) <= 3.0 * capital.std() / math.sqrt(len(capital))


@pytest.mark.parametrize("shift", [-0.7, 0.7])
def test_a_shift_after_a_long_calm_is_found_on_either_side(shift: float) -> None:
    rng = np.random.default_rng(5)
    monitor = DriftMonitor(rng.normal(size=500), window=300)
    calm = monitor.update(served(rng.normal(size=4000)))
    assert not calm.drifted
    assert calm.p_value > 0.01
    shifted = monitor.update(served(rng.normal(size=300) + shift))
    assert shifted.drifted
    assert shifted.p_value < 1e-6
    assert (shifted.mean_p_value < 0.45) if shift > 0 else (shifted.mean_p_value > 0.55)
    assert shifted.log_martingale > math.log(100.0)


def test_a_wider_distribution_of_the_same_centre_is_seen_by_the_distance() -> None:
    rng = np.random.default_rng(6)
    report = DriftMonitor(rng.normal(size=500)).update(served(3.0 * rng.normal(size=500)))
    assert report.p_value < 1e-6
    assert report.mean_p_value == pytest.approx(0.5, abs=0.05)


def test_the_window_slides_and_the_alarm_stays() -> None:
    rng = np.random.default_rng(7)
    monitor = DriftMonitor(rng.normal(size=400), window=200)
    drifted = monitor.update(served(rng.normal(size=250) + 2.0, np.ones(250, dtype=bool)))
    assert (drifted.count, drifted.window, drifted.flagged) == (250, 200, 1.0)
    half = monitor.update(served(rng.normal(size=100)))
    assert half.flagged == 0.5
    again = monitor.update(served(rng.normal(size=100)))
    assert (again.count, again.window, again.flagged) == (450, 200, 0.0)
    assert drifted.p_value < half.p_value < 1e-6
    assert again.p_value > 0.01
    assert again.drifted
    many = monitor.update(served(np.full(1000, 5.0)))  # more than a window at once
    assert (many.count, many.window) == (1450, 200)
    assert many.mean_p_value < 0.01


def test_the_alarm_outlives_the_evidence_that_raised_it() -> None:
    rng = np.random.default_rng(13)
    monitor = DriftMonitor(rng.normal(size=400))
    assert monitor.update(served(rng.normal(size=60) + 2.0)).drifted
    monitor.observe(served(rng.normal(size=2000)))
    later = monitor.update(served(rng.normal(size=1)))
    assert later.log_martingale < 0.0
    assert later.drifted


def test_how_inputs_are_batched_changes_nothing() -> None:
    rng = np.random.default_rng(8)
    reference, ratios = rng.integers(0, 5, 40), rng.integers(0, 6, 90)
    whole, parts = DriftMonitor(reference, window=50, seed=3), DriftMonitor(reference, window=50, seed=3)
    for part in np.split(ratios, [1, 7, 70]):
        parts.observe(served(part))
    assert parts.report() == whole.update(served(ratios))
    assert DriftMonitor(reference, window=50, seed=4).update(served(ratios)) != whole.report()


def test_memory_does_not_grow_with_what_is_served() -> None:
    rng = np.random.default_rng(9)
    monitor = DriftMonitor(rng.normal(size=100), window=64)
    monitor.update(served(rng.normal(size=200)))
    tracemalloc.start()
    for _ in range(40):
        monitor.update(served(rng.normal(size=200)))
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 10_000


def test_threads_lose_no_input() -> None:
    monitor = DriftMonitor(np.linspace(-1.0, 1.0, 50), window=64)
    batch = served(np.linspace(-1.0, 1.0, 5), np.array([True, False, False, False, False]))
    threads = [threading.Thread(target=lambda: [monitor.update(batch) for _ in range(100)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = monitor.report()
    assert report.count == 8 * 100 * 5
    assert report.flagged == pytest.approx(0.2, abs=0.02)


def test_ratios_that_are_no_numbers_count_as_the_most_extreme() -> None:
    monitor = DriftMonitor(np.arange(99.0))
    report = monitor.update(served([math.nan, math.inf]))
    assert report.mean_p_value <= 0.01
    assert monitor.update(served([-math.inf] * 2)).mean_p_value == pytest.approx(0.5, abs=0.01)


def test_an_endless_drift_does_not_overflow() -> None:
    monitor = DriftMonitor(np.linspace(-1.0, 1.0, 100_000))
    report = monitor.update(served(np.full(4000, 9.0)))
    assert report.drifted
    assert math.isfinite(report.log_martingale)
    assert report.log_martingale > 500.0


def test_a_file_without_reference_ratios_is_refused_with_what_to_do(tiny_model_path) -> None:
    with pytest.raises(ModelFileError, match=r"no reference log-likelihood ratios.*s2ap-defend calibrate"):
        DriftMonitor(open_model_file(tiny_model_path).manifest)


@pytest.mark.parametrize(
    ("reference", "options", "error", "message"),
    [
        ([], {}, InputError, "0 reference ratios"),
        ([0.0, math.nan], {}, InputError, "finite"),
        ([0.0], {"window": 0}, RecipeError, "window is 0"),
        ([0.0], {"level": 0.0}, RecipeError, "level 0"),
        ([0.0], {"level": math.nan}, RecipeError, "0 < level < 1"),
    ],
)
def test_references_and_options_out_of_range_are_refused(reference, options, error, message) -> None:
    with pytest.raises(error, match=message):
        DriftMonitor(reference, **options)


REFERENCE = (-3.0, -2.0, -0.5, 0.0, 0.5, 1.9, 2.0, 2.5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"truncation": "clean"}, 2 / 8),  # 2 and more
        ({"truncation": "abstain"}, 2 / 8),
        ({"truncation": "clean", "upper": (None, None)}, 0.0),
        ({"truncation": "sign"}, 4 / 8),  # undecided above 0 as well
        ({"truncation": "adversarial"}, 6 / 8),  # undecided above the clean boundary -1.5 as well
        ({"truncation": "sign", "lower": (-1.5, math.nextafter(2.0, -math.inf))}, 2 / 8),  # nothing is left undecided
        ({"truncation": "sign", "lower": (0.5, -1.5)}, None),  # .25 may be a clean stop or flagged at the end
        ({"truncation": "clean", "upper": (1.0, 2.0)}, None),  # 1.5 may be an alarm or not
        ({"truncation": "clean", "upper": (None, 2.0)}, None),
        (
            {"truncation": "clean", "opening": 2, "lower": (None, -1.5), "upper": (None, 2.0)},
            2 / 8,
        ),  # nobody stops at 1
    ],
)
def test_the_expected_share_is_that_of_the_reference_that_the_file_flags(tiny_model_path, changes, expected) -> None:
    manifest = open_model_file(tiny_model_path).manifest
    tables = manifest.test.model_dump()
    two = {name: tables[name][:2] for name in ("edges", "increments")}
    usual = {"lower": (-1.5, -1.5), "upper": (2.0, 2.0), "waves": (2,)}
    record = tables["calibration"] | {
        "samples": 6,
        "expected_false_alarm_rate": 0.01,
        "reference_ratios": REFERENCE,
    }
    test = type(manifest.test).model_validate({**tables, **two, **usual, "calibration": record, **changes})
    monitor = DriftMonitor(manifest.model_copy(update={"test": test, "members": manifest.members[:2]}))
    assert monitor.report().expected_flagged == expected
    assert DriftMonitor(REFERENCE).report().expected_flagged is None
