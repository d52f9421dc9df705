"""A comparison as one HTML page that needs nothing else, and its pictures as files."""

from __future__ import annotations

from html import escape
from pathlib import Path

from s2ap_defend.model_file import replace_file
from s2ap_train.commands.compare.comparison import Comparison
from s2ap_train.commands.compare.plots import accuracy_plot, sharpness_plot, stability_plot
from s2ap_train.commands.compare.report import EXPLANATION, attack_text, tables
from s2ap_train.page import html_note, html_page, html_picture, html_table

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
    return html_page(
        "Pruning runs compared",
        f"<p>{escape(attack_text(comparison))}</p>",
        *(html_table(table) for table in tables(comparison)),
        *(html_picture(content, _CAPTIONS[name]) for name, content in pictures.items()),
        *(html_note(line) for line in EXPLANATION),
    )
