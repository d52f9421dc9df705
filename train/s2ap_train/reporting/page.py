"""What reports are made of, shown twice: on the terminal, and as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console
from rich.text import Text

from s2ap_defend.files import replace_file
from s2ap_defend.tables import foreign, harmless, plain_table
from s2ap_defend.tables import print_table as print_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito: distinguishable by readers with any colour vision."""
WIDTH_INCHES = 8.0
"""Width of a figure."""
_WIDTH = 100
"""Characters of a line of text."""


@dataclass(frozen=True)
class TableText:
    """One table: title, header, rows of cells, and notes under it.

    Attributes:
        title: Above it.
        header: One for each column.
        rows: As many cells as the header has.
        notes: Under it.
        texts: Columns of text, the first ones; the others hold numbers, to the right.
        total: Whether the last row sums up the others.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    texts: int = 1
    total: bool = False

    def lines(self) -> list[str]:
        """As aligned plain text, without the notes; what steers a terminal is spelled out."""
        cells = [[harmless(cell) for cell in row] for row in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        text = [harmless(self.title)]
        for row in cells:
            padded = [
                cell.ljust(width) if column < self.texts else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            text.append("  " + "  ".join(padded).rstrip())
        return text


@dataclass(frozen=True)
class Point:
    """A point of a list with a remark under it; `kind`, such as 'failed', says how the page draws it."""

    text: str
    note: str
    kind: str


@dataclass(frozen=True)
class Picture:
    """A PNG file, what it shows, and its name where it is written as a file as well."""

    content: bytes
    caption: str
    name: str = ""

    @property
    def uri(self) -> Markup:
        """The file as an address, for the page."""
        return data_uri(self.content)


Block = str | TableText | Picture | Sequence[str | Point]
"""A paragraph, a table, a picture or a list; what is empty is not shown."""


def print_blocks(blocks: Iterable[Block], console: Console) -> None:
    """Print all but the pictures; names come from files: what steers a terminal is spelled out."""
    for block in blocks:
        if isinstance(block, TableText):
            print_table(block, console)
        elif isinstance(block, str) and block:
            _print_text(f"\n{_fill(block, console)}", console)
        elif not isinstance(block, str | Picture):
            for point in block:
                note = "" if isinstance(point, str) else point.note
                text = point if isinstance(point, str) else point.text
                _print_text(_fill(f"- {text}", console, "  "), console)
                if note:
                    _print_text(_fill(f"  {note}", console, "  "), console)


def print_table(table: TableText, console: Console) -> None:
    """Print a table; as plain text where there is no terminal or it is too narrow."""
    lines = table.lines()
    if not console.is_terminal or max(map(len, lines[1:])) > console.width:
        _print_text("\n".join(["", *lines]), console)
    else:
        rich_table = plain_table(*table.header)
        for column in rich_table.columns[table.texts :]:
            column.justify = "right"
        for row in table.rows:
            rich_table.add_row(*map(foreign, row))
        console.print(Text(f"\n{lines[0]}", style="bold"), soft_wrap=True)
        print_whole(rich_table, console)
    for note in table.notes:
        _print_text(_fill(f"  {note}", console, "    "), console)


def html_page(template: str, **values: object) -> str:
    """A page of `templates/`: values are shown as text, never as markup, and one that is missing is an error.

    `base.html` shows a `title` and `blocks`, each a `Block`; the others extend it.
    """
    return _environment().get_template(template).render(values)


def write_report(page: Path, title: str, blocks: Sequence[Block]) -> tuple[Path, ...]:
    """Write a page and, into its folder, its pictures, each file whole or not at all; the paths written.

    Raises:
        OSError: If one cannot be written.
    """
    contents = {page.with_name(block.name): block.content for block in blocks if isinstance(block, Picture)}
    contents[page] = html_page("base.html", title=title, blocks=blocks).encode()
    for path, content in contents.items():
        replace_file(path, content)
    return tuple(contents)


def data_uri(content: bytes, media: str = "image/png") -> Markup:
    """A file as an address that holds it."""
    return Markup(f"data:{media};base64,{base64.b64encode(content).decode()}")  # noqa: S704  (no character of HTML)


def axes_row(columns: int = 1, *, height: float = 3.4) -> tuple[Figure, Sequence[Axes]]:
    """A new figure, `height` inches high, and its axes side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=120, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        lighten(axis)
    return figure, axes


def lighten(axis: Axes) -> None:
    """Leave the upper and the right line out, and make the numbers small."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def png(figure: Figure) -> bytes:
    """A figure as PNG file; the same figure always gives the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("s2ap_train.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _visible(value: object) -> object:
    return harmless(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _print_text(text: str, console: Console) -> None:
    """As it is: no markup, no colours, not wrapped."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _fill(text: str, console: Console, indent: str = "") -> str:
    width = min(console.width, _WIDTH) if console.is_terminal else _WIDTH
    return textwrap.fill(harmless(text), width, subsequent_indent=indent, break_on_hyphens=False)
