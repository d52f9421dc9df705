"""Runs that differ in their seed only, and the means over them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch

from s2ap_defend.errors import RecipeError
from s2ap_train.commands.compare.runs import differences, flat, label
from s2ap_train.measures.stability import Stability, agreement, pairwise
from s2ap_train.storage.run_folder import RunFolder

_NOT_SETTINGS = {"seed", "name", "root", "accelerator", "devices", "channels_last"}
"""Last parts of configuration keys that do not make two runs two methods."""


@dataclass(frozen=True)
class Summary:
    """A measure over seeds: the values, their mean, and their sample standard deviation, None for fewer than two."""

    values: tuple[float, ...]

    @property
    def count(self) -> int:
        """Runs that have the figure."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        """Mean; None without any value."""
        return fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1)."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True, order=True)
class Setting:
    """What runs must share to be compared method against method."""

    data: str
    model: str
    structure: str
    sparsity: float

    def __str__(self) -> str:
        return f"{self.data}, {self.model}, {self.structure}, {100 * self.sparsity:g} % pruned"


@dataclass(frozen=True)
class Group:
    """One method in one setting, over seeds.

    Attributes:
        setting: Data, network, structure and the sparsity that was asked for.
        method: What pruned.
        base: The method that it plugs into; the method itself where it plugs into none.
        variant: Settings in which it differs from other groups of the same method, as text; often empty.
        runs: One a seed, by seed.
        stability: Of the masks between seeds; None for one seed.
        agreement: Share of clean test images on which two seeds predict the same class, for each pair; empty for one
            seed, and where the seeds were tested on different images.
    """

    setting: Setting
    method: str
    base: str
    variant: str
    runs: tuple[RunFolder, ...]
    stability: Stability | None
    agreement: Summary

    @property
    def name(self) -> str:
        """Short name of the method: 'hydra', 's2ap (hydra)', 's2ap (hydra), pruning.s2ap.radius 0.02'."""
        name = self.method if self.base == self.method else f"{self.method} ({self.base})"
        return f"{name}, {self.variant}" if self.variant else name

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs."""
        return tuple(run.metrics["seed"] for run in self.runs)

    @property
    def collapsed(self) -> int:
        """Runs that collapsed and stopped early; they count in every mean."""
        return sum(bool(run.metrics.get("collapse")) for run in self.runs)

    def summary(self, key: str) -> Summary:
        """A measure over the runs that have it."""
        values = (value_of(run, key) for run in self.runs)
        return Summary(tuple(value for value in values if value is not None))


def group_runs(runs: Sequence[RunFolder]) -> tuple[Group, ...]:
    """Runs in groups, in the order of setting and then as they were given.

    Runs are of one group when method, base, setting and all else that was asked for agree but the seed (and the name).

    Raises:
        RecipeError: If two runs of one group have the same seed: the same result twice is no second measurement.
    """
    arms: dict[tuple[Setting, str, str], dict[str, list[RunFolder]]] = {}
    for run in runs:
        arm = (_setting(run), str(run.metrics["method"]), str(run.metrics.get("base") or run.metrics["method"]))
        settings = json.dumps(settings_of(run), sort_keys=True, default=str)
        arms.setdefault(arm, {}).setdefault(settings, []).append(run)
    groups = []
    for (setting, method, base), variants in arms.items():
        for members, variant in zip(variants.values(), _variants(list(variants.values())), strict=True):
            in_order = tuple(sorted(members, key=lambda run: run.metrics["seed"]))
            _check_seeds(in_order)
            stability = pairwise([run.masks for run in in_order]) if len(in_order) > 1 else None
            groups.append(Group(setting, method, base, variant, in_order, stability, _agreement(in_order)))
    return tuple(sorted(groups, key=lambda group: group.setting))


def settings_of(run: RunFolder) -> dict[str, Any]:
    """Everything that was asked for, dotted keys, without seed, names and where it ran or the data lies."""
    return {key: value for key, value in flat(run.config).items() if key.split(".")[-1] not in _NOT_SETTINGS}


def value_of(run: RunFolder, key: str) -> float | None:
    """A figure of a run; None where it was not measured."""
    if key == "flip_between_epochs":
        flips = epoch_flips(run)
        return fmean(flips) if flips else None
    value = run.metrics.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def epoch_flips(run: RunFolder) -> tuple[float, ...]:
    """Share of kept weights that each epoch of the mask search replaced; empty if there was none."""
    stability = run.metrics.get("stability")
    found = stability.get("flip_between_epochs") if isinstance(stability, Mapping) else None
    return tuple(float(value) for value in found or () if value is not None)


def _setting(run: RunFolder) -> Setting:
    asked = run.metrics.get("target_sparsity")
    return Setting(
        data=label(run.metrics["data"]),
        model=label(run.config.get("model") or run.metrics["model"]),
        structure=str(run.metrics["structure"]),
        sparsity=float(asked) if isinstance(asked, int | float) else round(float(run.metrics["sparsity"]), 2),
    )


def _agreement(runs: Sequence[RunFolder]) -> Summary:
    tested = [run.metrics.get("after") or {} for run in runs]
    if len({after.get("images_sha256") for after in tested}) > 1 or any(
        after.get("predicted") is None for after in tested
    ):
        return Summary(())
    _check_predictions(runs)
    matrix = agreement([torch.tensor(after["predicted"]) for after in tested])
    pairs = itertools.combinations(range(len(runs)), 2)
    return Summary(tuple(float(matrix[i, j]) for i, j in pairs))


def _variants(members: Sequence[Sequence[RunFolder]]) -> list[str]:
    """For each group of one method, in which settings it differs from the others."""
    settings = [settings_of(runs[0]) for runs in members]
    keys = sorted({key for other in settings for key in differences(settings[0], other)})
    return [", ".join(f"{key} {own.get(key)}" for key in keys) for own in settings]


def _check_predictions(runs: Sequence[RunFolder]) -> None:
    first = runs[0]
    expected = len(first.metrics["after"]["predicted"])
    for run in runs[1:]:
        found = len(run.metrics["after"]["predicted"])
        if found != expected:
            raise RecipeError(
                f"{first.folder} and {run.folder} were tested on the same images but hold {expected} and {found} "
                "predictions (after.predicted); one of them was changed: run prune again"
            )


def _check_seeds(runs: Sequence[RunFolder]) -> None:
    for first, second in itertools.pairwise(runs):
        if first.metrics["seed"] == second.metrics["seed"]:
            raise RecipeError(
                f"{first.folder} and {second.folder} are the same run with seed {first.metrics['seed']}; give one of "
                "them, or runs with different seeds"
            )
