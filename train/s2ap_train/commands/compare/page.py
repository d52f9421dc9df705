"""A comparison as one HTML page that needs nothing else, and its pictures as files."""

from __future__ import annotations

from pathlib import Path

from s2ap_train.commands.compare.comparison import Comparison
from s2ap_train.commands.compare.plots import accuracy_plot, sharpness_plot, stability_plot
from s2ap_train.commands.compare.report import blocks
from s2ap_train.reporting.page import Picture, write_report

PAGE = "comparison.html"
FILES = ("accuracy.png", "sharpness.png", "stability.png", PAGE)


def write_pages(comparison: Comparison, folder: Path) -> tuple[Path, ...]:
    """Write the pictures and the page into a folder, each file whole or not at all; the paths written."""
    pictures = (
        Picture(
            accuracy_plot(comparison),
            "Accuracy by method: bars are means over seeds, whiskers one sample standard deviation.",
            "accuracy.png",
        ),
        Picture(
            sharpness_plot(comparison),
            "Sharpness of the loss around the scores: real mask changes, and the surrogate's eigenvalue.",
            "sharpness.png",
        ),
        Picture(
            stability_plot(comparison),
            "Stability of masks: kept weights that the next epoch, or another seed, replaces.",
            "stability.png",
        ),
    )
    return write_report(folder / PAGE, "Pruning runs compared", blocks(comparison, pictures))
