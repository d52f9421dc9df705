"""What a trained score model can do, as pictures and one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from s2ap_train.purifier.denoisers import LinearDenoiser
from s2ap_train.purifier.unet import UNet
from s2ap_train.reporting.page import COLOURS, WIDTH_INCHES, Picture, TableText, axes_row, png, write_report

PAGE = "report.html"
FILES = ("training.png", "denoising.png", "samples.png", PAGE)

_NET_COLOUR, _GAUSSIAN_COLOUR, _IDENTITY_COLOUR = *COLOURS[:2], "#444444"
_NOISE_SEED = 7
_GAP = 1  # pixels between pictures


def write_score_report(
    folder: Path, record: Mapping[str, Any], net: UNet, gaussian: LinearDenoiser, images: Tensor
) -> tuple[Path, ...]:
    """Write the pictures and the page into a folder, each file whole or not at all; the paths written.

    Args:
        folder: It is made where it does not exist.
        record: What is known of the model: `name`, `data`, `parameters`, `flops`, `seconds`, `history` and
            `denoising`, as `s2ap_train.hardening.score_model` keeps them.
        net: The score model, on the CPU.
        gaussian: The closed-form denoiser next to it.
        images: Clean images to show, [N, C, H, W] in [0, 1].
    """
    sigmas = [row["sigma"] for row in record["denoising"]]
    shown = (sigmas[0], sigmas[len(sigmas) // 2], sigmas[-1])
    blocks = (
        _summary_table(record),
        error_table(record["denoising"]),
        Picture(
            training_curve(record["history"]),
            "Training: the loss of every epoch at random sigmas, and the denoising error of the averaged weights on "
            "validation images.",
            "training.png",
        ),
        Picture(
            error_by_sigma(record["denoising"]),
            "Denoising error by sigma, as a fraction of the noise's energy: the score model, the best denoiser of a "
            "Gaussian with the training pixels' mean and covariance, and the identity.",
            "denoising.png",
        ),
        Picture(
            sample_pictures(net, gaussian, images, shown),
            "Validation images: clean, then for three sigmas noisy, denoised by the Gaussian, and denoised by the "
            "score model. Colours beyond [0, 1] are cut off.",
            "samples.png",
        ),
    )
    return write_report(folder / PAGE, f"Score model of {record['name']}", blocks)


def _summary_table(record: Mapping[str, Any]) -> TableText:
    """What the model is and what it cost."""
    architecture = record["architecture"]
    rows = (
        ("data", str(record["data"])),
        ("network", f"{architecture['width']} channels x {architecture['multipliers']}, {_fold(architecture)}"),
        ("parameters", f"{record['parameters']:,}"),
        ("FLOPs of one pass for one image", f"{record['flops']:,}"),
        ("epochs", str(len(record["history"]))),
        ("training time", f"{record['seconds']:.1f} s" if record["seconds"] is not None else "unknown"),
        ("mean validation error", f"{record['validation_error']:.3f} of the noise's energy"),
    )
    return TableText("The model", ("", ""), rows)


def _fold(architecture: Mapping[str, Any]) -> str:
    fold = architecture.get("fold", 1)
    return "pixels as they are" if fold == 1 else f"squares of {fold}x{fold} pixels as channels"


def error_table(denoising: list[Mapping[str, float]]) -> TableText:
    """The denoising errors by sigma, and where the closed form is better."""
    rows = tuple(
        (f"{row['sigma']:.3f}", "1.000", *(f"{row[key]:.3f}" for key in ("gaussian", "gaussian_expected", "net")))
        for row in denoising
    )
    behind = [f"{row['sigma']:.3f}" for row in denoising if row["net"] >= row["gaussian"]]
    notes = (f"At sigma {', '.join(behind)} the closed form is no worse than the network: train it longer.",)
    header = ("sigma", "identity", "Gaussian", "Gaussian, promised", "score model")
    return TableText("Denoising error, fraction of the noise's energy", header, rows, notes if behind else ())


def training_curve(history: list[Mapping[str, float]]) -> bytes:
    """Loss and validation error over epochs; a PNG file."""
    figure, (axis,) = axes_row()
    epochs = range(1, len(history) + 1)
    for key, colour, label in (
        ("loss", _IDENTITY_COLOUR, "training loss"),
        ("validation_error", _NET_COLOUR, "validation error"),
    ):
        axis.plot(epochs, [record[key] for record in history], color=colour, marker="o", markersize=3, label=label)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("epoch")
    axis.set_ylabel("error / noise energy")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False, fontsize=8)
    return png(figure)


def error_by_sigma(denoising: list[Mapping[str, float]]) -> bytes:
    """Denoising error of the three denoisers over sigma; a PNG file."""
    figure, (axis,) = axes_row()
    sigmas = [row["sigma"] for row in denoising]
    axis.axhline(1.0, color=_IDENTITY_COLOUR, linestyle="--", label="identity")
    for key, colour, label in (("gaussian", _GAUSSIAN_COLOUR, "Gaussian"), ("net", _NET_COLOUR, "score model")):
        axis.plot(sigmas, [row[key] for row in denoising], color=colour, marker="o", markersize=3, label=label)
    axis.set_xscale("log")
    axis.set_xticks(sigmas, [f"{sigma:.2g}" for sigma in sigmas])
    axis.minorticks_off()
    axis.set_ylim(0, 1.05)
    axis.set_xlabel("sigma, pixels in [0, 1]")
    axis.set_ylabel("error / noise energy")
    axis.legend(frameon=False, fontsize=8)
    return png(figure)


@torch.no_grad()
def sample_pictures(net: UNet, gaussian: LinearDenoiser, images: Tensor, sigmas: tuple[float, ...]) -> bytes:
    """A row for each image: clean, and for each sigma noisy, denoised by the Gaussian and by the net; a PNG file."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(_NOISE_SEED))
    columns, labels = [images], ["clean"]
    for sigma in sigmas:
        noisy = images + sigma * noise
        columns += [noisy, noisy - sigma * gaussian(noisy, sigma), noisy - sigma * net(noisy, sigma)]
        labels += [f"noisy\n{sigma:.2g}", "Gaussian", "model"]
    mosaic, step = _mosaic(torch.stack(columns, dim=1))
    height, width = mosaic.shape[:2]
    figure, (axis,) = axes_row(height=WIDTH_INCHES * height / width + 0.6)
    axis.imshow(mosaic, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_xticks([(column + 0.5) * step - _GAP for column in range(len(labels))], labels, fontsize=7)
    axis.xaxis.tick_top()
    axis.set_yticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return png(figure)


def _mosaic(pictures: Tensor) -> tuple[NDArray[np.float32], int]:
    """Pictures [rows, columns, C, H, W] side by side as one [h, w] or [h, w, 3], and the columns a picture takes."""
    rows, columns, channels, height, width = pictures.shape
    if channels not in {1, 3}:
        pictures = pictures.mean(2, keepdim=True)
    shown = pictures.shape[2]
    canvas = torch.ones(rows, height + _GAP, columns, width + _GAP, shown)
    canvas[:, :height, :, :width] = pictures.permute(0, 3, 1, 4, 2).clamp(0, 1)
    flat = canvas.reshape(rows * (height + _GAP), columns * (width + _GAP), shown).numpy()
    return (flat[..., 0] if shown == 1 else flat), width + _GAP
