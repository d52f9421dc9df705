"""Methods against each other over the same seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from s2ap_defend.errors import RecipeError
from s2ap_train.commands.compare.groups import Group, epoch_flips, group_runs, settings_of, value_of
from s2ap_train.commands.compare.measures import MEASURES
from s2ap_train.commands.compare.runs import check_comparable, differences
from s2ap_train.measures.benchmark import Benchmark, before_after
from s2ap_train.statistics.paired import PairedDifference, SeedDifference, seed_difference
from s2ap_train.storage.run_folder import RunFolder

_OF_S2AP = ("pruning.s2ap", "pruning.method", "pruning.base")
_OF_THE_METHOD = ("pruning.",)
_OF_EVERY_METHOD = ("pruning.training.", "pruning.recalibrate", "pruning.score_start")
"""Settings of pruning that mean the same in all methods that have them."""
FORMAT_VERSION = 1


@dataclass(frozen=True)
class MethodDifference:
    """A method minus its baseline, over the seeds that both ran.

    Attributes:
        method: The group.
        baseline: The group that it is compared with; the same setting.
        seeds: Seeds of both.
        measures: Paired differences by measure; a measure needs both values for a seed to count.
        unlike: Settings besides the pruning method's own in which the two differ, with (baseline's, method's) values:
            a difference may come from these. How both trained and began their scores is never a method's own.
        over_images: By seed, the robust accuracy paired image by image, where both runs hold the bits of the same
            images. Its interval speaks of other images, not of other seeds.
    """

    method: Group
    baseline: Group
    seeds: tuple[int, ...]
    measures: Mapping[str, SeedDifference]
    unlike: Mapping[str, tuple[Any, Any]]
    over_images: Mapping[int, PairedDifference]

    @property
    def time_ratio(self) -> float | None:
        """Time of the mask search over the baseline's, geometric mean over the seeds; None where one is not known."""
        times = [
            tuple(value_of(run, "seconds_mask_search") for run in group.runs if run.metrics["seed"] in self.seeds)
            for group in (self.method, self.baseline)
        ]
        logs = [math.log(own / other) for own, other in zip(*times, strict=True) if own and other]
        return math.exp(fmean(logs)) if logs else None


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, their paired differences, and the attack that all of them stood."""

    groups: tuple[Group, ...]
    differences: tuple[MethodDifference, ...]
    attack: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Everything that is printed or drawn, as JSON values."""
        return {
            "format_version": FORMAT_VERSION,
            "attack": dict(self.attack),
            "groups": [_group_json(group) for group in self.groups],
            "differences": [
                {
                    "setting": asdict(difference.method.setting),
                    "method": difference.method.name,
                    "baseline": difference.baseline.name,
                    "seeds": list(difference.seeds),
                    "measures": {key: found.to_json() for key, found in difference.measures.items()},
                    "over_images": {str(seed): found.to_json() for seed, found in difference.over_images.items()},
                    "time_ratio": difference.time_ratio,
                    "unlike": {key: list(values) for key, values in difference.unlike.items()},
                }
                for difference in self.differences
            ],
        }


def compare_runs(runs: Sequence[RunFolder], *, baseline: str | None = None) -> Comparison:
    """Compare runs of one data set under one attack.

    Args:
        runs: As `find_runs` reads them.
        baseline: Method that every other one is compared with. None compares a method that plugs into another (S2AP)
            with that one.

    Raises:
        RecipeError: If there are no runs, they do not compare, or none is of the baseline.
    """
    if not runs:
        raise RecipeError("there is nothing to compare; give folders that `s2ap-defend prune` wrote")
    check_comparable(runs)
    groups = group_runs(runs)
    methods = {group.method for group in groups}
    if baseline is not None and baseline not in methods:
        raise RecipeError(f"no run is of the baseline {baseline!r}; the runs are of {', '.join(sorted(methods))}")
    pairs = [(group, other) for group in groups for other in _baselines(group, groups, baseline)]
    return Comparison(
        groups=groups,
        differences=tuple(_difference(group, other) for group, other in pairs),
        attack={key: value for key, value in runs[0].metrics["attack"].items() if key != "seed"},
    )


def _baselines(group: Group, groups: Sequence[Group], baseline: str | None) -> list[Group]:
    wanted = group.base if baseline is None else baseline
    if group.method == wanted:
        return []
    found = [other for other in groups if other.setting == group.setting and other.method == wanted]
    return [other for other in found if other.base == group.base] or found


def _difference(method: Group, baseline: Group) -> MethodDifference:
    own = {run.metrics["seed"]: run for run in method.runs}
    others = {run.metrics["seed"]: run for run in baseline.runs}
    seeds = tuple(seed for seed in own if seed in others)
    for seed in seeds:
        _check_same_images(others[seed], own[seed])
    measures = {}
    for measure in MEASURES:
        pairs = [(value_of(others[seed], measure.key), value_of(own[seed], measure.key)) for seed in seeds]
        known = [(before, after) for before, after in pairs if before is not None and after is not None]
        if known:
            measures[measure.key] = seed_difference([before for before, _ in known], [after for _, after in known])
    return MethodDifference(
        method=method,
        baseline=baseline,
        seeds=seeds,
        measures=measures,
        unlike=_unlike(baseline, method),
        over_images=_over_images(others, own, seeds),
    )


def _unlike(baseline: Group, method: Group) -> dict[str, tuple[Any, Any]]:
    first, second = settings_of(baseline.runs[0]), settings_of(method.runs[0])
    own = _OF_S2AP if method.base == baseline.base else _OF_THE_METHOD

    def counts(key: str) -> bool:
        return not key.startswith(own) or (key.startswith(_OF_EVERY_METHOD) and key in first and key in second)

    return {key: values for key, values in differences(first, second).items() if counts(key)}


def _over_images(
    baseline: Mapping[int, RunFolder], method: Mapping[int, RunFolder], seeds: Sequence[int]
) -> dict[int, PairedDifference]:
    found = {}
    for seed in seeds:
        pair = (baseline[seed], method[seed])
        if all("correct" in (run.metrics.get("after") or {}) for run in pair):
            before, after = (_benchmark(run) for run in pair)
            found[seed] = before_after(before, after)["robust"]
    return found


def _benchmark(run: RunFolder) -> Benchmark:
    try:
        return Benchmark.from_json(run.metrics["after"])
    except (RecipeError, OverflowError) as error:  # a whole number in JSON may be larger than any float
        raise RecipeError(f"{run.folder}, after: {error}") from error


def _check_same_images(first: RunFolder, second: RunFolder) -> None:
    hashes = [(run.metrics.get("after") or {}).get("images_sha256") for run in (first, second)]
    if None not in hashes and hashes[0] != hashes[1]:
        raise RecipeError(
            f"{first.folder} and {second.folder} have the same seed but were measured on different test images; prune "
            "both from the same data with the same number of samples"
        )


def _group_json(group: Group) -> dict[str, Any]:
    summaries = {measure.key: group.summary(measure.key) for measure in MEASURES}
    return {
        **asdict(group.setting),
        "name": group.name,
        "method": group.method,
        "base": group.base,
        "seeds": list(group.seeds),
        "runs": [str(run.folder) for run in group.runs],
        "collapsed": group.collapsed,
        "measures": {
            key: {"mean": found.mean, "std": found.std, "values": list(found.values)}
            for key, found in summaries.items()
        },
        "flip_between_epochs": [list(epoch_flips(run)) for run in group.runs],
        "prediction_agreement_between_seeds": list(group.agreement.values),
        "stability_between_seeds": None if group.stability is None else group.stability.to_json(),
    }
