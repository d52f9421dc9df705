"""Reports as one HTML page that needs nothing else: its tables, its pictures and its looks."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from html import escape

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;"
    "background:#fff}table{border-collapse:collapse;margin:.5rem 0 1rem;font-variant-numeric:tabular-nums}"
    "caption{text-align:left;font-weight:600;padding:.25rem 0}th,td{padding:.2rem .8rem .2rem 0;text-align:right;"
    "border-bottom:1px solid #ddd}th:first-child,td:first-child{text-align:left}img{max-width:100%;height:auto}"
    "figure{margin:1.5rem 0}figcaption,.note{color:#555;font-size:.9rem}.scroll{overflow-x:auto}"
)


@dataclass(frozen=True)
class TableText:
    """One table: title, header, rows of cells, and notes under it. The first column is text, the others numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """As aligned plain text."""
        cells = [self.header, *self.rows]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.header))]
        text = [self.title]
        for row in cells:
            padded = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
            text.append("  " + "  ".join(padded).rstrip())
        return [*text, *(f"  {note}" for note in self.notes)]


def html_page(title: str, *parts: str) -> str:
    """A whole page: its title as heading, then these parts, which are HTML."""
    lines = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *parts,
        "</body></html>\n",
    ]
    return "\n".join(lines)


def html_table(table: TableText) -> str:
    """A table with its notes under it, every cell escaped."""
    header = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    notes = "".join(html_note(note) for note in table.notes)
    caption = f"<caption>{escape(table.title)}</caption>"
    body = f"<table>{caption}<thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll">{body}</div>{notes}'


def html_picture(png: bytes, caption: str) -> str:
    """A PNG file inside the page, its caption under it."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    text = escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def html_note(text: str) -> str:
    """A remark in small letters."""
    return f'<p class="note">{escape(text)}</p>'
