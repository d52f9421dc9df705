"""From the table of a sweep to a purifier, and to the words that say why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from s2ap_defend.manifest import ChoiceRow, PurifierSettings
from s2ap_defend.types import Bool
from s2ap_train.evaluate.figures import clopper_pearson
from s2ap_train.measures.paired import mcnemar
from s2ap_train.purifier_choice.sweep import Tried
from s2ap_train.purifier_grid import settings_of, without_ascent

__all__ = ["By", "best_row", "reason", "rows_of", "twin_of"]

By = Literal["recipe", "validation"]
NOISE = 0.05
"""A difference with a p-value from here on is called noise."""

_OF_THE_ASCENT = {"rho", "reuse_ascent"}


def rows_of(tried: Sequence[Tried]) -> tuple[ChoiceRow, ...]:
    """The rows of the manifest, in order.

    Raises:
        ValueError: Unless one of the purifiers is off.
    """
    off = next((one for one in tried if one.config.off), None)
    if off is None:
        raise ValueError("nothing to compare with: no purifier of the sweep is off")
    by_config = {one.config: one for one in tried}
    rows = []
    for one in tried:
        config, right = one.config, one.adaptive
        twin = None if config.off or config.rho == 0 else by_config.get(without_ascent(config))
        rows.append(
            ChoiceRow(
                **settings_of(config).model_dump(),
                clean_accuracy=float(one.clean.mean()),
                oblivious_accuracy=float(one.oblivious.mean()),
                adaptive_accuracy=float(right.mean()),
                adaptive_interval=clopper_pearson(int(right.sum()), len(right)),
                p_against_off=None if config.off else _p_value(off.adaptive, right),
                p_against_rho_0=None if twin is None else _p_value(twin.adaptive, right),
                network_passes=config.work,
                milliseconds=one.milliseconds,
            )
        )
    return tuple(rows)


def best_row(rows: Sequence[ChoiceRow]) -> int:
    """Index of the highest adaptive accuracy; of equal ones the fewest network passes, then the first."""
    return min(range(len(rows)), key=lambda i: (-rows[i].adaptive_accuracy, rows[i].network_passes, i))


def twin_of(rows: Sequence[ChoiceRow], row: ChoiceRow) -> ChoiceRow | None:
    """The row with the same settings and rho 0; None for one that is off, has rho 0, or where it was not tried."""
    if row.off or row.rho == 0:
        return None
    keys = PurifierSettings.model_fields.keys() - _OF_THE_ASCENT
    return next(
        (one for one in rows if one.rho == 0 and all(getattr(one, key) == getattr(row, key) for key in keys)), None
    )


def reason(rows: Sequence[ChoiceRow], chosen: int, by: By) -> str:
    """Why a row was chosen, what the attack left of it, without it and with rho 0, and whether a part of it hurts."""
    row, off, twin = rows[chosen], next(one for one in rows if one.off), twin_of(rows, rows[chosen])
    purifiers = [one for one in rows if not one.off]
    if row.off:
        sentences = [_off_in_words(off, purifiers, len(rows), by)]
    else:
        figures = f"{off.adaptive_accuracy:.1%} without a purifier"
        if twin is not None:
            figures += f", {twin.adaptive_accuracy:.1%} with rho 0"
        equals = [one for one in rows if one is not row and one.adaptive_accuracy == row.adaptive_accuracy]
        found = f"the best of {len(rows)} on validation images" if by == "validation" else "the recipe's own setting"
        if by == "validation" and equals:
            found += f", as good as {len(equals)} more with no fewer network passes"
        sentences = [
            f"The purifier is on ({row.in_words}), {found}: under the white-box attack {row.adaptive_accuracy:.1%} "
            f"stay right, {figures}.",
            _verdict("The purifier", row, off, row.p_against_off),
        ]
        if twin is not None:
            sentences.append(_verdict("Its sharpness-aware ascent", row, twin, row.p_against_rho_0))
    if by == "recipe":
        sentences += _better_ones(rows, row)
    return " ".join(sentences)


def _off_in_words(off: ChoiceRow, purifiers: Sequence[ChoiceRow], count: int, by: By) -> str:
    found = f"the best of {count} on validation images" if by == "validation" else "as the recipe says"
    text = f"The purifier is off, {found}: under the white-box attack {off.adaptive_accuracy:.1%} stay right"
    if not purifiers:
        return f"{text}."
    best = purifiers[best_row(purifiers)]
    return (
        f"{text}, {best.adaptive_accuracy:.1%} with the best purifier that was tried ({best.in_words}). "
        f"{_verdict('That one', best, off, best.p_against_off)}"
    )


def _verdict(what: str, after: ChoiceRow, before: ChoiceRow, p_value: float | None) -> str:
    """One sentence: it lowers the figure, raises it, or does neither beyond noise."""
    p_value = 1.0 if p_value is None else p_value
    test = f"(exact McNemar p = {p_value:.2g})"
    if p_value >= NOISE:
        return f"{what} changes the adaptive figure by no more than noise {test}."
    verb = "LOWERS" if after.adaptive_accuracy < before.adaptive_accuracy else "raises"
    return f"{what} {verb} the adaptive figure beyond noise {test}."


def _better_ones(rows: Sequence[ChoiceRow], row: ChoiceRow) -> list[str]:
    """What the sweep found that is better than the recipe's purifier: with an ascent, and altogether."""
    with_ascent = [one for one in rows if not one.off and one.rho > 0]
    sentences: list[str] = []
    for kind, some in (("Another SAM setting was better", with_ascent), ("The best of all rows", list(rows))):
        best = some[best_row(some)] if some else row
        if best.adaptive_accuracy > row.adaptive_accuracy and not any(best.in_words in one for one in sentences):
            sentences.append(f"{kind}: {best.in_words}, {best.adaptive_accuracy:.1%}.")
    return sentences


def _p_value(before: Bool, after: Bool) -> float:
    """Exact two-sided McNemar test that as many of the same images [N] are lost as gained."""
    return mcnemar(int((before & ~after).sum()), int((~before & after).sum()))
