"""The table of a sweep on the terminal."""

from __future__ import annotations

from rich.console import Console

from s2ap_defend.manifest import ChoiceRecord
from s2ap_defend.tables import harmless, plain_table, print_table
from s2ap_train.hardening.purifier_choice.decision import masked

__all__ = ["print_choice"]


def print_choice(choice: ChoiceRecord, console: Console) -> None:
    """Print every purifier that was tried, the reason, and how to read the table."""
    title = f"Purifiers under attack: {choice.samples} {harmless(choice.split)} images, l_inf eps {choice.eps:g}"
    table = plain_table(
        "", "purifier", "clean", "obl.", "grad.", "adaptive", "off", "rho 0", "passes", "ms", title=title
    )
    table.columns[1].no_wrap = False
    for i, row in enumerate(choice.rows):
        low, high = row.adaptive_interval
        table.add_row(
            ">" if i == choice.chosen else "",
            row.in_words,
            f"{row.clean_accuracy:.1%}",
            f"{row.oblivious_accuracy:.1%}",
            f"{row.gradient_accuracy:.1%}{'!' if masked(row, choice.samples) else ''}",
            f"[bold]{row.adaptive_accuracy:.1%}[/bold]\n{low:.0%}-{high:.0%}",
            _p_value(row.p_against_off),
            _p_value(row.p_against_rho_0),
            str(row.network_passes),
            f"{row.milliseconds:.2f}",
        )
    print_table(table, console)
    console.print(harmless(choice.reason), markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"behind it: {harmless(choice.defended)}\n{_to_beat(choice)}"
        "obl.      accuracy under an attack made as if there were no purifier\n"
        "grad.     under that and the descents along the exact gradient; ! where gradients are masked: BPDA, the\n"
        "          J-free surrogate or Square broke more than chance of what they left\n"
        "adaptive  worst case per image of all attacks on any of these purifiers, with its 95 % interval;\n"
        "          Square, which needs answers alone, was run on the chosen one, its twin with rho 0, and off\n"
        "off       p-value against no purifier, rho 0 against the same without ascent: exact McNemar, same images,\n"
        "          not corrected for the number of rows; the best of many rows is flattered by having been picked\n"
        "passes    of the score network for one image, forward and backward each one",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _to_beat(choice: ChoiceRecord) -> str:
    one = choice.reference
    if one is None:
        return ""
    return (
        f"to beat:   {harmless(one.name)}, without a purifier, under the same attack: {one.clean_accuracy:.1%} clean, "
        f"{one.adaptive_accuracy:.1%} adaptive\n"
    )


def _p_value(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
