"""Tables and pictures of reports: on the terminal, and as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from s2ap_defend.tables import plain_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito: distinguishable by readers with any colour vision."""

_STYLE = (
    ":root{color-scheme:light dark;--ink:#1a1a1a;--quiet:#555;--paper:#fff;--line:#ddd}"
    "@media(prefers-color-scheme:dark){:root{--ink:#e6e6e6;--quiet:#aaa;--paper:#16181b;--line:#3a3d42}}"
    "@media print{:root{color-scheme:light;--ink:#000;--quiet:#444;--paper:#fff;--line:#bbb}}"
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:var(--ink);"
    "background:var(--paper)}table{border-collapse:collapse;margin:.5rem 0 1rem;font-variant-numeric:tabular-nums}"
    "caption{text-align:left;font-weight:600;padding:.25rem 0}th,td{padding:.2rem .8rem .2rem 0;text-align:right;"
    "border-bottom:1px solid var(--line)}th:first-child,td:first-child,.text{text-align:left}"
    "img{max-width:100%;height:auto}figure{margin:1.5rem 0}figure>img{background:#fff}"
    "figcaption,.note{color:var(--quiet);font-size:.9em}.scroll{overflow-x:auto}"
    "@media print{body{margin:0;max-width:none;font-size:11px}.scroll{overflow:visible}figure,tr{break-inside:avoid}}"
)


@dataclass(frozen=True)
class TableText:
    """One table: title, header, rows of cells, and notes under it.

    Attributes:
        title: Above it.
        header: One for each column.
        rows: As many cells as the header has.
        notes: Under it.
        texts: Columns of text, the first ones; the others hold numbers, to the right.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    texts: int = 1

    def lines(self) -> list[str]:
        """As aligned plain text."""
        cells = [self.header, *self.rows]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.header))]
        text = [self.title]
        for row in cells:
            padded = [
                cell.ljust(width) if column < self.texts else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            text.append("  " + "  ".join(padded).rstrip())
        return [*text, *(f"  {note}" for note in self.notes)]


def print_table(table: TableText, console: Console) -> None:
    """Print a table; as plain text where there is no terminal or it is too narrow."""
    lines = table.lines()
    if not console.is_terminal or max(map(len, lines[1 : 2 + len(table.rows)])) > console.width:
        for line in ["", *lines]:
            print_line(line, console)
        return
    # Text, not str: names come from files, and [brackets] in them are no markup
    rich_table = plain_table(*table.header)
    for column in rich_table.columns[table.texts :]:
        column.justify = "right"
    for row in table.rows:
        rich_table.add_row(*(Text(cell) for cell in row))
    console.print(Text(f"\n{table.title}", style="bold"), soft_wrap=True)
    console.print(rich_table)
    for note in table.notes:
        print_line(f"  {note}", console)


def print_line(line: str, console: Console) -> None:
    """Print one line as it is: no markup, no colours, not wrapped."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def html_page(title: str, *parts: str, style: str = "") -> str:
    """A whole page: its title as heading, then these parts, which are HTML; `style` is CSS beside the common one."""
    lines = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *parts,
        "</body></html>\n",
    ]
    return "\n".join(lines)


def html_table(table: TableText) -> str:
    """A table with its notes under it, every cell escaped."""
    header = _html_row("th", table.header, table.texts, ' scope="col"')
    rows = "".join(_html_row("td", row, table.texts) for row in table.rows)
    notes = "".join(html_note(note) for note in table.notes)
    caption = f"<caption>{escape(table.title)}</caption>"
    body = f"<table>{caption}<thead>{header}</thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll">{body}</div>{notes}'


def html_picture(png: bytes, caption: str) -> str:
    """A PNG file inside the page, its caption under it."""
    return f"<figure>{html_image(png, caption)}<figcaption>{escape(caption)}</figcaption></figure>"


def html_image(content: bytes, text: str, *, media: str = "image/png") -> str:
    """A picture inside the page.

    Args:
        content: The file.
        text: What it shows, for readers who do not see it.
        media: Media type of the file.
    """
    return f'<img src="data:{media};base64,{base64.b64encode(content).decode()}" alt="{escape(text)}">'


def html_note(text: str) -> str:
    """A remark in small letters."""
    return f'<p class="note">{escape(text)}</p>'


def png(figure: Figure) -> bytes:
    """A figure as PNG file; the same figure always gives the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _html_row(tag: str, cells: tuple[str, ...], texts: int, attributes: str = "") -> str:
    left = [attributes + (' class="text"' if 0 < column < texts else "") for column in range(len(cells))]
    return f"<tr>{''.join(f'<{tag}{how}>{escape(cell)}</{tag}>' for cell, how in zip(cells, left, strict=True))}</tr>"
