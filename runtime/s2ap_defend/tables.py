"""Tables on the terminal: one look, narrow enough for 80 columns."""

import unicodedata

from rich import box
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text


def plain_table(*columns: str, title: str | None = None) -> Table:
    """An empty table without frames whose cells are never wrapped; its title is text, cells may hold markup."""
    return Table(
        *(Column(name, no_wrap=True) for name in columns),
        title=None if title is None else escape(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )


def harmless(text: str) -> str:
    """Text of somebody else, with what steers a terminal (control and format characters) as Python escapes it."""
    return "".join(repr(one)[1:-1] if _steers(one) else one for one in text)


def foreign(text: str) -> Text:
    """A cell for text of somebody else: harmless, and no markup."""
    return Text(harmless(text))


def _steers(character: str) -> bool:
    return unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
