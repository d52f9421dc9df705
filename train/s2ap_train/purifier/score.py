"""Training of the score model by denoising score matching."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

import torch
from torch import Tensor

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Float32
from s2ap_train.purifier.blocks import CHANNELS_PER_GROUP, Blocks
from s2ap_train.purifier.denoisers import DenoisingError, denoising_error, denoising_errors, fit_gaussian, log_spaced
from s2ap_train.purifier.score_state import ScoreState
from s2ap_train.purifier.sizes import NetworkSize, Size, fold_for, multipliers_for, width_for
from s2ap_train.purifier.unet import UNet, padded_sides
from s2ap_train.training import Run, batches, run_epochs
from s2ap_train.training.batches import check_shareable, flipped

__all__ = ["ScoreTraining", "TrainedScore", "train_score_model"]

_VALIDATION_SIGMAS = 4
_REPORTED_SIGMAS = 8
_LEAST_SIGMA = 1e-4
_NARROW = 1.05  # ratio of largest and smallest sigma below which one stands for all
_MOST_REPORTED_IMAGES = 256
_MOST_PADDED = 2  # pixels with padding, as a multiple of those without
_LATER_KEYS = (("fold", None), ("blocks", "full"), ("teacher", None))  # left out, models from before them stay known
_HELD_OUT = 10  # one image of so many validates, where no validation images are given


@dataclass(frozen=True)
class ScoreTraining:
    """Hyper-parameters of `train_score_model`; sigma in [0, 1] pixels.

    Attributes:
        size: 'standard', 'fast' or 'tiny', which decides `width`, `multipliers` and `fold` by the images: see
            `architecture`.
        width: Channels of the first level, a multiple of 8, instead of the size's.
        multipliers: Channels of each level in units of `width`, instead of the size's.
        fold: Side of the squares of pixels that become channels before the first level, instead of the size's.
        blocks: 'separable' computes the convolutions of residual blocks channel by channel, then over each pixel.
        teacher: Size of a network of full blocks that is trained first, as this one would be, and whose predictions are
            learnt in place of the noise; none: the noise is.
        epochs: Passes over the training images.
        batch_size: Images a step, of all processes together.
        lr: Adam's learning rate at first; it falls on a cosine to zero.
        average_decay: Of the exponential moving average of weights that is returned.
        sigma_min: Smallest noise.
        sigma_max: Largest noise.
        flip: Whether images are mirrored left to right at random.
    """

    size: Size = "standard"
    width: int | None = None
    multipliers: tuple[int, ...] | None = None
    fold: int | None = None
    blocks: Blocks = "full"
    teacher: Size | None = None
    epochs: int = 25
    batch_size: int = 50
    lr: float = 4e-3
    average_decay: float = 0.99
    sigma_min: float = 0.05
    sigma_max: float = 0.6
    flip: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            RecipeError: If a count is below one, or a size or rate is unknown or out of range.
        """
        if min(self.epochs, self.batch_size) < 1 or self.lr <= 0 or not 0 <= self.average_decay < 1:
            raise RecipeError(
                f"this cannot be trained: {self}; counts start at 1, lr is above 0, average_decay below 1"
            )
        if not _LEAST_SIGMA <= self.sigma_min <= self.sigma_max < math.inf:
            raise RecipeError(
                f"need {_LEAST_SIGMA:g} <= sigma_min <= sigma_max, found {self.sigma_min:g} and {self.sigma_max:g}; "
                "they are lengths in [0, 1] pixels, and float32 cannot tell less noise from none"
            )
        for name, kinds in (("size", Size), ("blocks", Blocks), ("teacher", Size)):
            value = getattr(self, name)
            if value not in get_args(kinds) and (name, value) != ("teacher", None):
                raise RecipeError(f"{name} {value!r} is not known; choose from {', '.join(get_args(kinds))}")
        if self.width is not None and (self.width < 1 or self.width % CHANNELS_PER_GROUP):
            raise RecipeError(f"width is {self.width}; give a multiple of {CHANNELS_PER_GROUP}")
        if self.multipliers is not None and min(self.multipliers, default=0) < 1:
            raise RecipeError(f"multipliers are {self.multipliers}; give one number from 1 for each level")
        if self.fold is not None and self.fold < 1:
            raise RecipeError(f"fold is {self.fold}; give the side of the squares of pixels that become channels, or 1")

    def architecture(self, image_shape: tuple[int, int, int]) -> NetworkSize:
        """The network's size for images (C, H, W): what is given here, the rest by the images.

        Raises:
            RecipeError: If `multipliers` and `fold` would halve the images so often that most of them were padding.
        """
        fold = fold_for(image_shape, self.size) if self.fold is None else self.fold
        width = width_for(image_shape, self.size, fold) if self.width is None else self.width
        multipliers = multipliers_for(image_shape, fold) if self.multipliers is None else self.multipliers
        _, height, image_width = image_shape
        halvings = len(multipliers) - 1
        rows, columns = padded_sides(image_shape[1:], fold * 2**halvings)
        if rows * columns > _MOST_PADDED * height * image_width:
            folded = f" and folded by {fold}" if fold > 1 else ""
            raise RecipeError(
                f"images of {height}x{image_width} cannot be halved {halvings} times{folded}: they would have to be "
                f"padded to {rows}x{columns}; use fewer multipliers than {multipliers}, or leave multipliers and fold "
                "to the images"
            )
        return NetworkSize(width, multipliers, fold)

    def settings(self) -> dict[str, Any]:
        """What decides the weights, by name; `fold`, `blocks` and `teacher` are there where they are given."""
        named = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in named.items() if (name, value) not in _LATER_KEYS}

    def of_teacher(self) -> ScoreTraining | None:
        """How the teacher is trained; None: there is none."""
        if self.teacher is None:
            return None
        return replace(self, size=self.teacher, width=None, multipliers=None, fold=None, blocks="full", teacher=None)

    def validation_sigmas(self) -> list[float]:
        """Noise levels of every epoch's error: the middles of equal parts of [sigma_min, sigma_max] in logarithm.

        One where there is nearly no range.
        """
        ratio = self.sigma_max / self.sigma_min
        count = 1 if ratio < _NARROW else _VALIDATION_SIGMAS
        return [self.sigma_min * ratio ** ((i + 0.5) / count) for i in range(count)]

    def reported_sigmas(self) -> list[float]:
        """Noise levels of the final table: evenly spaced in logarithm, both ends included; one where both are one."""
        if self.sigma_min == self.sigma_max:
            return [self.sigma_min]
        return log_spaced(self.sigma_min, self.sigma_max, _REPORTED_SIGMAS)


@dataclass(frozen=True)
class TrainedScore:
    """A trained score model and what training did.

    Attributes:
        net: In evaluation mode, without gradients, averaged weights, on the CPU.
        history: One record per epoch: 'loss', 'validation_error' over the validation sigmas, and the error at each of
            them as 'validation_error_<sigma>'.
        denoising: After the last epoch, at eight sigmas over the trained range, next to the Gaussian, on at most 256 of
            the validation images.
    """

    net: UNet
    history: tuple[dict[str, float], ...]
    denoising: tuple[DenoisingError, ...]

    @property
    def validation_error(self) -> float:
        """Mean denoising error after the last epoch, as a fraction of the noise's energy."""
        return self.history[-1]["validation_error"]


def train_score_model(
    images: Float32,
    config: ScoreTraining,
    *,
    run: Run,
    validation: Float32 | None = None,
    teacher: UNet | None = None,
) -> TrainedScore:
    """Train a U-Net to predict the noise e in x + sigma e.

    Denoising score matching (Vincent 2011) with the loss mean ||net(x + sigma e, sigma) - e||^2, sigma log-uniform and
    stratified over the batch, Adam with a learning rate on a cosine to zero, and an exponential moving average of the
    weights. The seed decides the weights, on one machine and number of threads. Everything random is drawn for the
    whole batch: the number of processes changes the order of sums only.

    Args:
        images: Training images, float32 [N, C, H, W] in [0, 1].
        config: Hyper-parameters.
        run: The seed is of the initial weights, the order and the noise; without a compute it trains on the CPU.
        validation: Images for the validation error; by default every tenth training image is held out for it.
        teacher: A trained network whose predictions are learnt in place of the noise. Their mean is the same, and they
            vary less, as they do not depend on what no network can know.

    Raises:
        RecipeError: If the images do not fit the U-Net, a batch is too small for the number of processes, or the loss
            is no longer finite.
    """
    train = torch.from_numpy(images)
    held_out = train[::_HELD_OUT] if validation is None else torch.from_numpy(validation)
    if validation is None and len(train) > 1:
        train = train[torch.arange(len(train)) % _HELD_OUT != 0]
    net = _fresh(train, config, run.seed)
    compute = run.compute_for(net)
    net = net.to(compute.device).to(memory_format=torch.channels_last)  # a fifth faster on a CPU
    train, held_out = train.to(compute.device), held_out.to(compute.device)
    if teacher is not None:
        teacher = copy.deepcopy(teacher).to(compute.device).to(memory_format=torch.channels_last)
    state = ScoreState(
        net,
        epochs=config.epochs,
        steps=math.ceil(len(train) / config.batch_size),
        lr=config.lr,
        average_decay=config.average_decay,
        run=run,
    )
    run_epochs(state, run, lambda: _epoch(state, train, held_out, config, teacher))
    net.load_state_dict(state.average.model.state_dict())
    net.eval().requires_grad_(False)
    sigmas = config.reported_sigmas()
    compared = denoising_errors(net, fit_gaussian(train), held_out[:_MOST_REPORTED_IMAGES], sigmas)
    return TrainedScore(net.cpu().to(memory_format=torch.contiguous_format), tuple(state.history), compared)


def _epoch(
    state: ScoreState, train: Tensor, held_out: Tensor, config: ScoreTraining, teacher: UNet | None = None
) -> None:
    """One epoch; the record has its mean loss."""
    total, compute = 0.0, state.compute
    for rows in batches(len(train), config.batch_size, state.generator):
        check_shareable(len(rows), compute)
        x = flipped(train[rows], state.generator) if config.flip else train[rows]
        drawn = torch.randn(x.shape, generator=state.generator).to(compute.device)
        sigma = _log_uniform(len(x), config, state.generator).to(compute.device)
        noisy = x + sigma[:, None, None, None] * drawn
        y, noise, levels = (compute.share(whole) for whole in (noisy, drawn, sigma))
        with compute.autocast():
            if teacher is not None:
                with torch.no_grad():
                    noise = teacher(y, levels).float()
            predicted = state.model(y, levels)
        loss = (predicted.float() - noise).square().mean() * (len(y) * compute.world_size / len(rows))
        state.step(loss)
        total += float(compute.mean([loss.detach()])[0]) * len(rows)
        if not math.isfinite(total):
            raise RecipeError(
                f"the loss is {total} in epoch {state.epoch} of {config.epochs}; lower lr (now {config.lr:g})"
            )
    state.history.append({"loss": total / len(train), **_validated(state, held_out, config)})


def _validated(state: ScoreState, held_out: Tensor, config: ScoreTraining) -> dict[str, float]:
    """Errors of the averaged weights, in float32: what is returned in the end has no other precision."""
    sigmas = config.validation_sigmas()
    errors = denoising_error(state.average.model, held_out, sigmas)
    by_sigma = {f"validation_error_{sigma:.3g}": error for sigma, error in zip(sigmas, errors, strict=True)}
    return {"validation_error": sum(errors) / len(errors), **by_sigma}


def _fresh(train: Tensor, config: ScoreTraining, seed: int) -> UNet:
    channels, height, image_width = train.shape[1:]
    size = config.architecture((channels, height, image_width))
    try:
        return UNet(
            channels,
            *size,
            blocks=config.blocks,
            data_mean=float(train.mean()),
            data_std=float(train.std()),
            seed=seed,
        )
    except ValueError as error:
        raise RecipeError(str(error)) from error


def _log_uniform(count: int, config: ScoreTraining, generator: torch.Generator) -> Tensor:
    """One sigma for each image [count]: one from each of `count` equal parts of the range, in random order."""
    part = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    return config.sigma_min * (config.sigma_max / config.sigma_min) ** (part / count)
