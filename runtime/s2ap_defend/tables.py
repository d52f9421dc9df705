"""Tables on the terminal: one look, and never cut, whatever they are printed to."""

import unicodedata

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

_UNLIMITED = 1_000_000
_READABLE = 20


def plain_table(*columns: str, title: str | None = None) -> Table:
    """An empty table without frames whose cells are not wrapped; its title is text, cells may hold markup.

    `print_table` prints it.
    """
    return Table(
        *(Column(name, no_wrap=True) for name in columns),
        title=None if title is None else escape(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )


def print_table(table: Table, console: Console) -> None:
    """Print a table whole, to whatever it is printed.

    In a pipe or file every row is one line, however long. Where a terminal is too narrow even for wrapped cells, every
    row is printed as lines of 'column: cell'.
    """
    unlimited = console.options.update(max_width=_UNLIMITED)
    natural = Measurement.get(console, unlimited, table).maximum
    if not console.is_terminal:
        table.width = natural
        with console.capture() as captured:
            console.print(table, crop=False)
        lines = "\n".join(map(str.rstrip, captured.get().splitlines()))
        console.print(lines, markup=False, highlight=False, emoji=False, soft_wrap=True)
    elif natural - _shrinks_by(table, console) <= console.width:
        console.print(table)
    else:
        _print_rows(table, console)


def harmless(text: str) -> str:
    """Text of somebody else, with what steers a terminal (control and format characters) as Python escapes it."""
    return "".join(repr(one)[1:-1] if _steers(one) else one for one in text)


def foreign(text: str) -> Text:
    """A cell for text of somebody else: harmless, and no markup."""
    return Text(harmless(text))


def _shrinks_by(table: Table, console: Console) -> int:
    """Columns of the terminal that wrapping saves without cutting a word or making a cell too narrow to be read."""
    unlimited = console.options.update(max_width=_UNLIMITED)
    saved = 0
    for column in table.columns:
        measured = [Measurement.get(console, unlimited, cell) for cell in (column.header, *column.cells)]
        widest = max(one.maximum for one in measured)
        if not column.no_wrap:
            saved += widest - max(min(widest, _READABLE), *(one.minimum for one in measured))
    return saved


def _print_rows(table: Table, console: Console) -> None:
    if table.title:
        console.print(Text.from_markup(str(table.title), style="italic"), soft_wrap=True)
    names = [" ".join(_plain(column.header).plain.split()) for column in table.columns]
    for row in zip(*(column.cells for column in table.columns), strict=True):
        console.print()
        for name, cell in zip(names, map(_plain, row), strict=True):
            if cell.plain:
                text = Text(" ").join(cell.split())
                console.print(Text(f"{name}: ") + text if name else text, soft_wrap=True)
    console.print()


def _plain(cell: RenderableType) -> Text:
    return cell if isinstance(cell, Text) else Text.from_markup(str(cell))


def _steers(character: str) -> bool:
    return unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
