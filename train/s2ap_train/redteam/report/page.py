"""An evaluation as one HTML file: no network, no script, no other file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from s2ap_defend.files import replace_file
from s2ap_defend.types import Float32
from s2ap_train.redteam.report.console import sections
from s2ap_train.redteam.report.plots import pictures
from s2ap_train.redteam.report.tables import assumptions_table, configuration_table
from s2ap_train.redteam.report.verdict import verdict
from s2ap_train.redteam.report.words import caveats, count_in_words, informed, labels_attacked, percent
from s2ap_train.redteam.results import Evaluation, GalleryItem
from s2ap_train.reporting.page import data_uri, html_page

__all__ = ["evaluation_page", "write_page"]

_SMALL = 96
"""Pixels up to which images are kept exactly; larger ones are compressed."""
_QUALITY = 70
_PICTURES = {
    "baselines": ("baselines",),
    "attacks": ("composition",),
    "effort": ("eps", "effort"),
    "detector": ("roc", "members"),
}


def write_page(evaluation: Evaluation, path: Path) -> None:
    """Write the page: whole, or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    replace_file(path, evaluation_page(evaluation).encode())


def evaluation_page(evaluation: Evaluation) -> str:
    """The page as HTML; whatever comes from a file is escaped."""
    plots = pictures(evaluation)
    shown: dict[str, list[Any]] = {**sections(evaluation)}
    for section, names in _PICTURES.items():
        shown[section] += [plots[name] for name in names if name in plots]
    shown["images"] = list(map(_shown, evaluation.gallery))
    shown["threat"] = [assumptions_table(evaluation)]
    shown["configuration"] = [configuration_table(evaluation)]
    return html_page(
        "redteam.html",
        title=f"Red team report: {evaluation.configuration.model}",
        evaluation=evaluation,
        verdict=verdict(evaluation),
        caveats=caveats(evaluation),
        attacks=count_in_words(evaluation),
        informed=informed(evaluation),
        labels_attacked=labels_attacked(evaluation),
        percent=percent,
        sections={name: [block for block in blocks if block] for name, blocks in shown.items()},
    )


def _shown(item: GalleryItem) -> dict[str, Any]:
    """An image, its attacked version, the change, and what the purifier makes of it."""
    change = item.attacked - item.original
    largest = float(np.abs(change).max())
    factor = 0.5 / largest if largest else 1.0
    strip = {
        "original": item.original,
        "attacked": item.attacked,
        f"difference x {factor:.3g}": 0.5 + factor * change,
        "purified": item.purified,
    }
    return {
        "item": item,
        "small": max(item.original.shape[1:]) <= _SMALL,
        "strip": {text: _image(image) for text, image in strip.items()},
    }


def _image(image: Float32) -> Markup:
    """One image [C, H, W]: exact to 8 bits when small, compressed when large; other than 1 or 3 channels as mean."""
    pixels = image if len(image) in {1, 3} else image.mean(axis=0, keepdims=True)
    eight = np.rint(255 * np.clip(pixels, 0.0, 1.0)).astype(np.uint8).transpose(1, 2, 0)
    picture = Image.fromarray(eight[..., 0] if eight.shape[2] == 1 else eight)
    stream = io.BytesIO()
    if max(picture.size) <= _SMALL:
        picture.save(stream, format="PNG", optimize=True)
        return data_uri(stream.getvalue())
    picture.save(stream, format="JPEG", quality=_QUALITY)
    return data_uri(stream.getvalue(), "image/jpeg")
