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
