"""Pictures of the purification benchmark: images before and behind the purifier, and accuracy over eps and steps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from s2ap_defend.types import Float32
from s2ap_train.purifier.variants import Variant

ROWS = 4
_STYLE = {"font.size": 8, "svg.hashsalt": "s2ap-defend"}


def draw_images(file: Path, clean: Float32, attacked: Float32, variants: Mapping[str, Variant]) -> None:
    """Write a picture: an image, attacked, the difference, and for each purifier its result and how far it moved.

    Args:
        file: PNG file.
        clean: Images [N, C, H, W] in [0, 1]; the first few whose attacked form differs are drawn.
        attacked: The same, attacked [N, C, H, W].
        variants: Purifiers by title.
    """
    rows = np.flatnonzero(np.abs(attacked - clean).max((1, 2, 3)) > 1e-6)[:ROWS]
    columns: dict[str, tuple[Float32, bool]] = {
        "image": (clean[rows], False),
        "attacked": (attacked[rows], False),
        "difference": (attacked[rows] - clean[rows], True),
    }
    for title, variant in variants.items():
        with torch.no_grad():
            purified = variant.purify(torch.from_numpy(attacked[rows])).numpy()
        columns[f"{title}: purified"] = (purified, False)
        columns[f"{title}: moved by"] = (purified - attacked[rows], True)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(1.5 * len(columns), 1.55 * len(rows) + 0.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = np.atleast_2d(figure.subplots(len(rows), len(columns)))
        for column, (title, (images, signed)) in enumerate(columns.items()):
            span = max(float(np.abs(images).max()), 1e-6)
            for row, image in enumerate(images):
                _show(axes[row, column], image, span if signed else None)
            axes[0, column].set_title(f"{title}\n+-{span:.2f}" if signed else title)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=110, metadata={"Software": None})


def draw_curves(file: Path, curves: Mapping[str, Any]) -> None:
    """Write a picture of accuracy under the strongest attack over eps, and over its steps."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, kind, label in zip(figure.subplots(1, 2), ("eps", "steps"), ("eps", "attack steps"), strict=True):
            for name, curve in curves.items():
                if isinstance(curve, Mapping):
                    axes.plot(curves[kind], curve[kind], marker="o", markersize=3, label=name)
            axes.set(xlabel=label, ylabel=f"accuracy, {curves['classifier']} classifier", ylim=(-0.02, 1.02))
            axes.grid(alpha=0.3)
            axes.legend()
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=110, metadata={"Software": None})


def _show(axes: Axes, image: Float32, span: float | None) -> None:
    """Draw one image [C, H, W]; with a span, as signed differences in grey about zero."""
    pixels = image if span is None else 0.5 + image / (2 * span)
    pixels = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]
    axes.imshow(np.clip(pixels, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
