"""From the table of a sweep to a purifier, and to the words that say why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from s2ap_defend.manifest import ChoiceRow, PurifierSettings, Ungraded
from s2ap_train.hardening.purifier_choice.sweep import Tried
from s2ap_train.recipe.purifier_grid import settings_of, without_ascent
from s2ap_train.statistics.figures import clopper_pearson
from s2ap_train.statistics.paired import NOISE, mcnemar, paired_difference

__all__ = ["By", "best_row", "masked", "reason", "rows_of", "twin_of"]

By = Literal["recipe", "validation"]

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
                gradient_accuracy=float(one.gradient.mean()),
                ungraded=Ungraded(
                    bpda=int(one.bpda.sum()),
                    surrogate=int(one.surrogate.sum()),
                    square=None if one.square is None else int(one.square.sum()),
                ),
                adaptive_accuracy=float(right.mean()),
                adaptive_interval=clopper_pearson(int(right.sum()), len(right)),
                p_against_off=None if config.off else paired_difference(off.adaptive, right).p_value,
                p_against_rho_0=None if twin is None else paired_difference(twin.adaptive, right).p_value,
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


def masked(row: ChoiceRow, samples: int) -> bool:
    """Whether attacks without the exact gradient broke more than chance of what it had left.

    With the exact gradient nothing else should be needed. The accuracy under the exact gradient alone is compared with
    that under all attacks on the row by McNemar's test, as every other difference is (the second is never higher, so
    six images are beyond chance); and it is masked where they broke half of what was left, however few that is.
    """
    lost, left = row.ungraded.total, round(row.gradient_accuracy * samples)
    return lost > 0 and (mcnemar(lost, 0) < NOISE or 2 * lost >= left)


def reason(rows: Sequence[ChoiceRow], chosen: int, by: By, samples: int) -> str:
    """Why a row was chosen, what the attack left of it, without it and with rho 0, and whether a part of it hurts."""
    row, off, twin = rows[chosen], next(one for one in rows if one.off), twin_of(rows, rows[chosen])
    if row.off:
        sentences = _off_in_words(rows, off, by, samples)
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
            *_verdict("The purifier", row, off, row.p_against_off, samples),
        ]
        if twin is not None:
            sentences += _verdict("Its sharpness-aware ascent", row, twin, row.p_against_rho_0, samples, repeated=True)
    if by == "recipe":
        sentences += _better_ones(rows, row, samples)
    if by == "validation":
        sentences += _at_the_edge(rows, row)
    if len(rows) > 2:
        sentences.append(
            f"The p-values are not corrected for the {len(rows)} rows that were tried, and the best of many is "
            "flattered by having been picked."
        )
    return " ".join(sentences)


def _off_in_words(rows: Sequence[ChoiceRow], off: ChoiceRow, by: By, samples: int) -> list[str]:
    found = f"the best of {len(rows)} on validation images" if by == "validation" else "as the recipe says"
    text = f"The purifier is off, {found}: under the white-box attack {off.adaptive_accuracy:.1%} stay right"
    purifiers = [one for one in rows if not one.off]
    if not purifiers:
        return [f"{text}."]
    best = purifiers[best_row(purifiers)]
    return [
        f"{text}, {best.adaptive_accuracy:.1%} with the best purifier that was tried ({best.in_words}).",
        *_verdict("That one", best, off, best.p_against_off, samples),
    ]


def _verdict(
    what: str, after: ChoiceRow, before: ChoiceRow, p_value: float | None, samples: int, *, repeated: bool = False
) -> list[str]:
    """It lowers the figure, raises it, or does neither beyond noise; nobody knows where gradients are masked.

    `repeated`: that they are has been said before.
    """
    p_value = 1.0 if p_value is None else p_value
    test = f"(exact McNemar p = {p_value:.2g})"
    hidden = masked(after, samples)
    sentences = [_masked_in_words(after, samples)] if hidden and not repeated else []
    if p_value >= NOISE:
        said = f"{what} changes the adaptive figure by no more than noise {test}."
    elif after.adaptive_accuracy < before.adaptive_accuracy:
        said = f"{what} LOWERS the adaptive figure beyond noise {test}."
    elif hidden:
        said = f"{what} may only seem to lift the adaptive figure {test}: a better attack may find more."
    else:
        said = f"{what} raises the adaptive figure beyond noise {test}."
    return [*sentences, said]


def _masked_in_words(row: ChoiceRow, samples: int) -> str:
    broke = row.ungraded
    square = "" if broke.square is None else f", Square {broke.square}"
    return (
        f"Its gradients are masked: of {round(row.gradient_accuracy * samples)} images that its exact gradient left, "
        f"{broke.total} were broken without it (BPDA {broke.bpda}, the surrogate {broke.surrogate}{square})."
    )


def _better_ones(rows: Sequence[ChoiceRow], row: ChoiceRow, samples: int) -> list[str]:
    """What the sweep found that is better than the recipe's purifier: with an ascent, and altogether."""
    with_ascent = [one for one in rows if not one.off and one.rho > 0]
    sentences: list[str] = []
    for kind, some in (("Another SAM setting was better", with_ascent), ("The best of all rows", list(rows))):
        best = some[best_row(some)] if some else row
        if best.adaptive_accuracy > row.adaptive_accuracy and not any(best.in_words in one for one in sentences):
            doubt = " (its gradients are masked)" if masked(best, samples) else ""
            square = ", before Square" if best.ungraded.square is None is not row.ungraded.square else ""
            sentences.append(f"{kind}: {best.in_words}, {best.adaptive_accuracy:.1%}{square}{doubt}.")
    return sentences


def _at_the_edge(rows: Sequence[ChoiceRow], row: ChoiceRow) -> list[str]:
    """Whether a setting is the largest or smallest that was tried, so that better ones may lie beyond."""
    if row.off:
        return []
    purifiers, edges = [one for one in rows if not one.off], []
    for key, lowest in (("sigma", 0.0), ("steps", 1.0), ("radius", 0.0), ("rho", 0.0)):
        own, tried = _value(row, key), {_value(one, key) for one in purifiers}
        if len(tried) > 1 and own == max(tried):
            edges.append(f"{key} {own:g} is the largest")
        elif len(tried) > 1 and own == min(tried) and own > lowest:
            edges.append(f"{key} {own:g} is the smallest")
    return [f"It lies at the edge of what was tried: {', '.join(edges)}; better ones may lie beyond."] if edges else []


def _value(row: ChoiceRow, key: str) -> float:
    return max(row.sigmas) if key == "sigma" else float(getattr(row, key))
