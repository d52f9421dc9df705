"""Tables on the terminal: one look, narrow enough for 80 columns."""

from rich import box
from rich.table import Column, Table


def plain_table(*columns: str, title: str | None = None) -> Table:
    """An empty table without frames whose cells are never wrapped."""
    return Table(
        *(Column(name, no_wrap=True) for name in columns),
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
