"""Options that several commands share."""

from typing import Literal

import click


def workers_option(ctx: click.Context, option: click.Parameter, value: str | None) -> int | Literal["ray"] | None:
    """A number of processes, or 'ray'."""
    if value is None or value == "ray":
        return value if value is None else "ray"
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither a number of processes from 1 nor 'ray'", ctx, option)
    return int(value)


def numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between them.

    Raises:
        ValueError: If one is none.
    """
    return tuple(float(part) for part in text.split(","))


def pixels(text: str) -> float:
    """An l_inf budget in [0, 1] pixels, also as a fraction such as 8/255.

    Raises:
        ValueError: If it is no number above 0 and at most 1.
    """
    numerator, slash, denominator = text.partition("/")
    value = float(numerator) / float(denominator) if slash else float(numerator)
    if not 0 < value <= 1:
        raise ValueError(f"{text} is not above 0 and at most 1")
    return value
