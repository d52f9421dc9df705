"""Training of the score model by denoising score matching."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Float32
from s2ap_train.models.weight_average import WeightAverage
from s2ap_train.purifier.unet import UNet

__all__ = ["ScoreTraining", "TrainedScore", "denoising_error", "train_score_model"]

OnEpoch = Callable[[int, Mapping[str, float]], None]
_VALIDATION_SEED = 2024
_VALIDATION_SIGMAS = 4
_HELD_OUT = 10  # one image of so many validates, where no validation images are given


@dataclass(frozen=True)
class ScoreTraining:
    """Hyper-parameters of `train_score_model`; sigma in [0, 1] pixels."""

    width: int = 16
    multipliers: tuple[int, ...] = (1, 2)
    epochs: int = 25
    batch_size: int = 50
    lr: float = 4e-3
    average_decay: float = 0.99  # of the exponential moving average of weights that is returned
    sigma_min: float = 0.05
    sigma_max: float = 0.6

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            RecipeError: If a count is below one, or a size or rate is out of range.
        """
        if min(self.epochs, self.batch_size) < 1 or self.lr <= 0 or not 0 <= self.average_decay < 1:
            raise RecipeError(
                f"this cannot be trained: {self}; counts start at 1, lr is above 0, average_decay below 1"
            )
        if not 0 < self.sigma_min <= self.sigma_max:
            raise RecipeError(f"need 0 < sigma_min <= sigma_max, found {self.sigma_min} and {self.sigma_max}")

    def validation_sigmas(self) -> list[float]:
        """Noise levels of the validation error: the middles of equal parts of [sigma_min, sigma_max] in logarithm."""
        ratio = self.sigma_max / self.sigma_min
        return [self.sigma_min * ratio ** ((i + 0.5) / _VALIDATION_SIGMAS) for i in range(_VALIDATION_SIGMAS)]


@dataclass(frozen=True)
class TrainedScore:
    """A trained score model and what training did.

    Attributes:
        net: In evaluation mode, without gradients, averaged weights.
        history: One record per epoch; 'validation_error' is the denoising error over the validation sigmas.
    """

    net: UNet
    history: tuple[dict[str, float], ...]

    @property
    def validation_error(self) -> float:
        """Mean denoising error after the last epoch, as a fraction of the noise's energy."""
        return self.history[-1]["validation_error"]


def train_score_model(
    images: Float32,
    config: ScoreTraining,
    *,
    seed: int,
    validation: Float32 | None = None,
    on_epoch: OnEpoch | None = None,
    device: torch.device | str = "cpu",
) -> TrainedScore:
    """Train a U-Net to predict the noise e in x + sigma e.

    Denoising score matching (Vincent 2011) with the loss mean ||net(x + sigma e, sigma) - e||^2, sigma log-uniform and
    stratified over the batch, Adam with a learning rate on a cosine to zero, and an exponential moving average of the
    weights. The seed decides the weights, on one machine and number of threads.

    Args:
        images: Training images, float32 [N, C, H, W] in [0, 1].
        config: Hyper-parameters.
        seed: Of the initial weights, the order and the noise.
        validation: Images for the validation error; by default every tenth training image is held out for it.
        on_epoch: Called after each epoch with its number and record.
        device: Where to train; the model is returned there.

    Raises:
        RecipeError: If the images do not fit the U-Net, or the loss is no longer finite.
    """
    train = torch.from_numpy(images)
    held_out = train[::_HELD_OUT] if validation is None else torch.from_numpy(validation)
    if validation is None and len(train) > 1:
        train = train[torch.arange(len(train)) % _HELD_OUT != 0]
    net = _fresh(train, config, seed).to(device).to(memory_format=torch.channels_last)  # a fifth faster on a CPU
    average = WeightAverage(net, config.average_decay)
    generator = torch.Generator().manual_seed(seed)
    steps_in_epoch = math.ceil(len(train) / config.batch_size)
    optimiser = torch.optim.Adam(net.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.epochs * steps_in_epoch)
    history = []
    for epoch in range(config.epochs):
        total = 0.0
        for rows in torch.randperm(len(train), generator=generator).tensor_split(steps_in_epoch):
            x = train[rows]
            noise = torch.randn(x.shape, generator=generator)
            sigma = _log_uniform(len(x), config, generator)
            noisy = x + sigma[:, None, None, None] * noise
            loss = (net(noisy.to(device), sigma.to(device)) - noise.to(device)).square().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            average.update(net)
            total += float(loss.detach()) * len(rows)
        if not math.isfinite(total):
            raise RecipeError(f"the loss is {total} after epoch {epoch} of {config.epochs}; lower lr (now {config.lr})")
        errors = denoising_error(average.model, held_out.to(device), config.validation_sigmas())
        history.append({"loss": total / len(train), "validation_error": sum(errors) / len(errors)})
        if on_epoch is not None:
            on_epoch(epoch, history[-1])
    net.load_state_dict(average.model.state_dict())
    net.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    return TrainedScore(net, tuple(history))


@torch.no_grad()
def denoising_error(net: Callable[[Tensor, float], Tensor], images: Tensor, sigmas: Sequence[float]) -> list[float]:
    """Mean ||D(x + sigma e) - x||^2 / ||sigma e||^2 at each sigma; 1 is the error of the identity, of not denoising.

    The noise is the same in every call with images of one shape.

    Args:
        net: The score model.
        images: Clean images [N, C, H, W] in [0, 1].
        sigmas: Noise levels in pixels.
    """
    generator = torch.Generator().manual_seed(_VALIDATION_SEED)
    errors = []
    for sigma in sigmas:
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        error = (net(images + sigma * noise, sigma) - noise).square().sum() / noise.square().sum()
        errors.append(float(error))
    return errors


def _fresh(train: Tensor, config: ScoreTraining, seed: int) -> UNet:
    factor = 2 ** (len(config.multipliers) - 1)
    channels, height, width = train.shape[1:]
    if height % factor or width % factor:
        raise RecipeError(
            f"images of {height}x{width} cannot be halved {len(config.multipliers) - 1} times; "
            f"use fewer multipliers than {config.multipliers}"
        )
    try:
        return UNet(
            channels,
            config.width,
            config.multipliers,
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
