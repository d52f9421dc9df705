"""A comparison as one HTML page that needs nothing else, and its pictures as files."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from s2ap_defend.model_file import replace_file
from s2ap_train.compare.comparison import Comparison
from s2ap_train.compare.plots import accuracy_plot, sharpness_plot, stability_plot
from s2ap_train.compare.report import EXPLANATION, TableText, attack_text, tables

PAGE = "comparison.html"
PLOTS = {
    "accuracy.png": accuracy_plot,
    "sharpness.png": sharpness_plot,
    "stability.png": stability_plot,
}
FILES = (*PLOTS, PAGE)
_CAPTIONS = {
    "accuracy.png": "Accuracy by method: bars are means over seeds, whiskers one sample standard deviation.",
    "sharpness.png": "Sharpness of the loss around the scores: the surrogate's eigenvalue beside real mask changes.",
    "stability.png": "Stability of masks: kept weights that the next epoch, or another seed, replaces.",
}
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;"
    "background:#fff}table{border-collapse:collapse;margin:.5rem 0 1rem;font-variant-numeric:tabular-nums}"
    "caption{text-align:left;font-weight:600;padding:.25rem 0}th,td{padding:.2rem .8rem .2rem 0;text-align:right;"
    "border-bottom:1px solid #ddd}th:first-child,td:first-child{text-align:left}img{max-width:100%;height:auto}"
    "figure{margin:1.5rem 0}figcaption,.note{color:#555;font-size:.9rem}.scroll{overflow-x:auto}"
)


def write_pages(comparison: Comparison, folder: Path) -> tuple[Path, ...]:
    """Write the pictures and the page into a folder, each file whole or not at all; the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {name: draw(comparison) for name, draw in PLOTS.items()}
    for name, content in pictures.items():
        replace_file(folder / name, content)
    replace_file(folder / PAGE, page(comparison, pictures).encode())
    return tuple(folder / name for name in FILES)


def page(comparison: Comparison, pictures: dict[str, bytes]) -> str:
    """The page: tables and pictures (PNG files by name) inside it, no address in it, every name escaped."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>Pruning runs compared</title><style>{_STYLE}</style></head><body>",
        f"<h1>Pruning runs compared</h1><p>{escape(attack_text(comparison))}</p>",
        *(_table(table) for table in tables(comparison)),
        *(_figure(name, content) for name, content in pictures.items()),
        *(f'<p class="note">{escape(line)}</p>' for line in EXPLANATION),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _table(table: TableText) -> str:
    header = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    caption = f"<caption>{escape(table.title)}</caption>"
    body = f"<table>{caption}<thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll">{body}</div>{notes}'


def _figure(name: str, content: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    caption = escape(_CAPTIONS[name])
    return f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
