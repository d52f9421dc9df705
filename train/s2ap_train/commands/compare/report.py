"""A comparison as tables: for a terminal, as plain text, and for the page."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from s2ap_train.commands.compare.comparison import Comparison, MethodDifference
from s2ap_train.commands.compare.groups import Group, Setting, Summary
from s2ap_train.commands.compare.measures import MEASURES, Measure
from s2ap_train.commands.compare.runs import described
from s2ap_train.reporting.page import Block, Picture, TableText, print_blocks

_BY_KEY = {measure.key: measure for measure in MEASURES}
_ACCURACY = tuple(_BY_KEY[key] for key in ("sparsity", "clean_accuracy", "mask_robust_accuracy", "robust_accuracy"))
_COST = _BY_KEY["seconds_mask_search"]
_SHARPNESS = tuple(_BY_KEY[key] for key in ("sharpness", "hessian_eigenvalue", "hessian_eigenvalue_relative"))
_FLIPS = tuple(_BY_KEY[key] for key in ("flip_rate", "flip_between_epochs"))
_AGREEMENT = Measure("agreement", "agree", share=True)
_MISSING = "-"

_EXPLANATION = (
    "mean +- sample standard deviation over seeds. mask robust: under the attack before fine-tuning. robust: after it. "
    "pruned: of all weights under masks together, not the mean of layers.",
    "sharpness: largest rise of the loss found by real changes of the mask. lambda max: of the straight-through "
    "Hessian in score space, a surrogate; relative: with each layer's scores in units of their norm, so larger scores "
    "make it larger.",
    "flip rate: kept weights that S2AP's perturbation changes. epochs, seeds: kept weights that the next epoch or "
    "another seed replaces; chance: what independent random masks would replace, expected between seeds that train "
    "their own dense network, whose channels have another order. agree: test images that two seeds classify alike.",
)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the tables; plain text where there is no terminal or it is too narrow."""
    print_blocks(blocks(comparison), console)


def blocks(comparison: Comparison, pictures: Iterable[Picture] = ()) -> list[Block]:
    """Everything that is shown of a comparison, on the terminal and on the page."""
    settings = (
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in comparison.attack.items()
        if value is not None and key != "name"
    )
    attack = f"attack: {comparison.attack.get('name', 'unnamed')}, {', '.join(settings)}"
    return [attack, *tables(comparison), *pictures, "What the columns say:", _EXPLANATION]


def tables(comparison: Comparison) -> tuple[TableText, ...]:
    """All tables: for each setting accuracy, sharpness with stability, and paired differences."""
    found: list[TableText] = []
    for setting in dict.fromkeys(group.setting for group in comparison.groups):
        groups = [group for group in comparison.groups if group.setting == setting]
        found += [_accuracy(setting, groups), _sharpness(setting, groups)]
        found += [_differences(d) for d in comparison.differences if d.method.setting == setting]
    return tuple(found)


def _accuracy(setting: Setting, groups: list[Group]) -> TableText:
    rows = tuple((group.name, str(len(group.seeds)), *_spreads(group, *_ACCURACY, _COST)) for group in groups)
    notes = tuple(
        f"{group.name}: {group.collapsed} of {len(group.runs)} runs collapsed and stopped early; the means count them"
        for group in groups
        if group.collapsed
    )
    header = ("method", "seeds", *(f"{measure.title} %" for measure in _ACCURACY), "search s")
    return TableText(f"{setting}: accuracy", header, rows, notes)


def _sharpness(setting: Setting, groups: list[Group]) -> TableText:
    rows = tuple(
        (
            group.name,
            *_spreads(group, *_SHARPNESS, *_FLIPS),
            *_between_seeds(group),
            _spread(group.agreement, _AGREEMENT),
        )
        for group in groups
    )
    shares = ("flip rate %", "epochs %", "seeds %", "chance %", "agree %")
    header = ("method", "sharpness", "lambda max", "relative", *shares)
    return TableText(f"{setting}: sharpness and stability of masks", header, rows)


def _differences(difference: MethodDifference) -> TableText:
    title = f"{difference.method.setting}: {difference.method.name} minus {difference.baseline.name}"
    if not difference.seeds:
        return TableText(title, ("measure",), (), ("no seed in common: nothing to pair",))
    rows = []
    for key, found in difference.measures.items():
        measure = _BY_KEY[key]
        interval = "one seed: no interval"
        if found.interval is not None:
            interval = f"[{_signed(found.interval[0], measure)}, {_signed(found.interval[1], measure)}]"
        std = _MISSING if found.std is None else _number(found.std, measure)
        unit = " %" if measure.share else ""
        rows.append((measure.title + unit, str(found.count), _signed(found.mean, measure), std, interval))
    notes = []
    if len(difference.seeds) == 1 and difference.over_images:
        (found_on,) = difference.over_images.values()
        low, high = found_on.interval
        notes.append(
            f"robust % of this seed over its {found_on.samples} images: {100 * found_on.difference:+.1f}, 95 % "
            f"interval [{100 * low:+.1f}, {100 * high:+.1f}]; another seed may differ by more"
        )
    if difference.time_ratio is not None:
        notes.append(f"search time: {difference.time_ratio:.2f} times the baseline's")
    if difference.unlike:
        notes.append(f"they also differ in {described(difference.unlike)}: the difference may come from there")
    header = ("paired difference", "seeds", "mean", "std", "95 % t-interval")
    return TableText(title, header, tuple(rows), tuple(notes))


def _between_seeds(group: Group) -> tuple[str, str]:
    if group.stability is None:
        return _MISSING, _MISSING
    spread = "" if group.stability.std is None else f"+-{100 * group.stability.std.flip_rate:.1f}"
    return f"{100 * group.stability.mean.flip_rate:.1f}{spread}", f"{100 * group.stability.mean.chance:.1f}"


def _spreads(group: Group, *measures: Measure) -> tuple[str, ...]:
    return tuple(_spread(group.summary(measure.key), measure) for measure in measures)


def _spread(summary: Summary, measure: Measure) -> str:
    if summary.mean is None:
        return _MISSING
    return _number(summary.mean, measure) + ("" if summary.std is None else f"+-{_number(summary.std, measure)}")


def _number(value: float, measure: Measure) -> str:
    if measure.share:
        return f"{100 * value:.1f}"
    return f"{value:.1f}" if measure.key == _COST.key else f"{value:.3g}"


def _signed(value: float, measure: Measure) -> str:
    text = _number(abs(value), measure)
    return f"{'-' if value < 0 else '+'}{text}"
