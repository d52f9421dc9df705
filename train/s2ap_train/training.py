"""Training of classifiers: natural or adversarial, with weights chosen on a validation set."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from s2ap_defend.errors import RecipeError
from s2ap_train.attacks.accuracy import Array, accuracy, on_device, robust_accuracy
from s2ap_train.attacks.pgd import pgd
from s2ap_train.attacks.weight_perturbation import perturbed, weight_perturbation
from s2ap_train.models.folding import evaluation_view
from s2ap_train.models.modes import batch_norm_statistics_frozen, evaluation_mode
from s2ap_train.models.weight_average import WeightAverage

__all__ = [
    "EpochChoice",
    "Training",
    "TrainingConfig",
    "accuracy",
    "adversarial_examples",
    "apply_masks",
    "batches",
    "cosine",
    "robust_accuracy",
    "shifted",
    "train_classifier",
    "validate",
]

OnEpoch = Callable[[int, Mapping[str, float]], None]
_VALIDATION_SEED = 2024


@dataclass(frozen=True)
class TrainingConfig:
    """Hyper-parameters of `train_classifier`. `eps` 0 is natural training, above it PGD adversarial training."""

    epochs: int = 20
    lr: float = 0.1
    batch_size: int = 100
    weight_decay: float = 5e-4
    momentum: float = 0.9
    label_smoothing: float = 0.0
    shift: int = 0  # largest random shift of a training image, pixels, edges filled with 0
    average_decay: float = 0.0  # of the exponential moving average of weights that is validated and returned; 0 = none
    eps: float = 0.0  # l_inf, pixels in [0, 1]
    eps_warmup_epochs: int = 0  # eps rises linearly from 0 over these
    attack_steps: int = 5
    attack_step_size: float | None = None  # pixels; None = 2.5 eps / attack_steps
    weight_radius: float = 0.0  # of adversarial weight perturbation, relative to each weight's norm; 0 = none
    weight_warmup_epochs: int = 0  # epochs before the perturbation of weights starts
    validation_steps: int = 10  # PGD steps of the robust validation accuracy
    validate_every: int = 1  # epochs; the last one always is

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            RecipeError: If a count is below one, or a size, rate or radius is negative.
        """
        counts = (self.epochs, self.batch_size, self.attack_steps, self.validation_steps, self.validate_every)
        sizes = (self.lr, self.weight_decay, self.momentum, self.eps, self.weight_radius, self.shift)
        if min(counts) < 1 or min(sizes) < 0 or not 0 <= self.average_decay < 1:
            raise RecipeError(
                f"this cannot be trained: {self}; counts start at 1, sizes at 0, average_decay is below 1"
            )

    def step_size(self, eps: float) -> float:
        """Length of an attack step at a given eps, pixels."""
        if self.attack_step_size is None:
            return 2.5 * eps / self.attack_steps
        return self.attack_step_size * (eps / self.eps if self.eps else 1.0)


@dataclass(frozen=True)
class Training:
    """What a training run did: one record per epoch, and the epoch (from 0) whose weights were kept."""

    history: tuple[dict[str, float], ...]
    best_epoch: int


def train_classifier(
    model: nn.Module,
    images: Array,
    labels: Array,
    validation: tuple[Array, Array],
    config: TrainingConfig,
    *,
    seed: int,
    masks: Mapping[str, Tensor] | None = None,
    on_epoch: OnEpoch | None = None,
) -> Training:
    """Train a model in place; it ends in evaluation mode with the weights of the epoch that `EpochChoice` took.

    SGD with momentum, learning rate on a cosine to zero. With `eps` > 0 this is PGD adversarial training (Madry et al.
    2018): examples are made in evaluation mode, the loss is taken on them in training mode, and the epoch is chosen by
    robust validation accuracy. With `weight_radius` > 0 the gradient is taken at adversarially perturbed weights (Wu et
    al. 2020), found on the same examples; that pass leaves batch-normalisation statistics alone.

    Args:
        model: Images [N, C, H, W] in [0, 1] -> logits [N, K].
        images: Training images, float32 [N, C, H, W] in [0, 1].
        labels: Their labels, int64 [N].
        validation: Images and labels that choose the epoch; never the test set.
        config: Hyper-parameters.
        seed: Of the order, the shifts and the attack's random start; it decides the weights on one machine.
        masks: By parameter name, True = kept: these weights stay exactly 0 wherever their mask is False.
        on_epoch: Called after each epoch with its number and record.

    Raises:
        RecipeError: If the loss is no longer finite.
    """
    device = next(model.parameters()).device
    all_images, all_labels = on_device(device, images, labels)
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    masks = {name: mask.to(device) for name, mask in (masks or {}).items()}
    apply_masks(parameters, masks)
    optimiser = torch.optim.SGD(
        [p for p in parameters.values() if p.requires_grad],
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    average = WeightAverage(model, config.average_decay) if config.average_decay else None
    choice, best_state = EpochChoice(len(validation[0])), model.state_dict()
    history = []
    steps_in_epoch = math.ceil(len(all_images) / config.batch_size)
    for epoch in range(config.epochs):
        eps = config.eps * min(1.0, (epoch + 1) / (config.eps_warmup_epochs + 1))
        radius = config.weight_radius if epoch >= config.weight_warmup_epochs else 0.0
        total = 0.0
        for step, rows in enumerate(batches(len(all_images), config.batch_size, generator)):
            optimiser.param_groups[0]["lr"] = cosine(config.lr, epoch + step / steps_in_epoch, config.epochs)
            x, y = shifted(all_images[rows], config.shift, generator), all_labels[rows]
            if eps:
                x = adversarial_examples(model, x, y, eps=eps, config=config, generator=generator)
            model.train()
            loss = _step(
                model, x, y, optimiser, parameters, radius=radius, masks=masks, smoothing=config.label_smoothing
            )
            if average is not None:
                average.update(model)
            total += loss * len(rows)
        if not math.isfinite(total):
            raise RecipeError(f"the loss is {total} after epoch {epoch} of {config.epochs}; lower lr (now {config.lr})")
        record = {"loss": total / len(all_images)}
        if (epoch + 1) % config.validate_every == 0 or epoch + 1 == config.epochs:
            candidate = model if average is None else average.model
            record |= validate(candidate, validation, config)
            if choice.accepts(epoch, record):
                best_state = copy.deepcopy(candidate.state_dict())
        history.append(record)
        if on_epoch is not None:
            on_epoch(epoch, record)
    model.load_state_dict(best_state)
    model.eval()
    return Training(history=tuple(history), best_epoch=choice.epoch)


class EpochChoice:
    """Which epoch to keep: the latest whose validation accuracy is within one standard error of the best so far.

    Breiman et al. 1984's rule, with later for simpler: a small validation set must not throw away epochs for its noise,
    but overfitting and collapse beyond the noise are undone. `epoch` is the one kept.
    """

    def __init__(self, validation_size: int) -> None:
        self.epoch = 0
        self._size, self._best = validation_size, 0.0

    def accepts(self, epoch: int, record: Mapping[str, float]) -> bool:
        """Whether this epoch is kept, by robust accuracy where the record has it."""
        score = record.get("validation_robust_accuracy", record["validation_accuracy"])
        self._best = max(self._best, score)
        if score < self._best - math.sqrt(self._best * (1 - self._best) / self._size):
            return False
        self.epoch = epoch
        return True


def validate(
    model: Callable[[Tensor], Tensor], validation: tuple[Array, Array], config: TrainingConfig
) -> dict[str, float]:
    """Clean accuracy on the validation set and, where the training is adversarial, the robust one at the full eps."""
    record = {"validation_accuracy": accuracy(model, *validation)}
    if config.eps:
        record["validation_robust_accuracy"] = robust_accuracy(
            model, *validation, eps=config.eps, steps=config.validation_steps, seed=_VALIDATION_SEED
        )
    return record


def batches(count: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """A random order of `count` rows in batches of at most `size`, all about equal: none is too small to normalise."""
    order = torch.randperm(count, generator=generator)
    return list(order.tensor_split(math.ceil(count / size)))


def cosine(start: float, epoch: float, epochs: int) -> float:
    """A value that falls from `start` to 0 over `epochs` along half a cosine; `epoch` may be fractional."""
    return start * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def shifted(images: Tensor, largest: int, generator: torch.Generator) -> Tensor:
    """Each image [N, C, H, W] moved by up to `largest` pixels both ways, independently; what moves in is 0."""
    if not largest:
        return images
    height, width = images.shape[-2:]
    offsets = torch.randint(0, 2 * largest + 1, (2, len(images), 1), generator=generator).to(images.device)
    rows = (offsets[0] + torch.arange(height, device=images.device))[:, None, :, None]  # [N, 1, H, 1]
    columns = (offsets[1] + torch.arange(width, device=images.device))[:, None, None, :]  # [N, 1, 1, W]
    image = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    padded = pad(images, (largest,) * 4)
    return padded[image, channel, rows, columns]


def apply_masks(parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Set every weight to exactly 0 where its mask is False.

    Raises:
        RecipeError: If a mask names no parameter or has another shape.
    """
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            raise RecipeError(
                f"no weight of shape {tuple(mask.shape)} is named {name!r}; masks belong to another architecture"
            )
        with torch.no_grad():
            parameters[name].masked_fill_(~mask, 0.0)


def adversarial_examples(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, config: TrainingConfig, generator: torch.Generator
) -> Tensor:
    """The examples that training takes its loss on: PGD on the model in evaluation mode, with the config's steps."""
    view = evaluation_view(model)
    step_size = config.step_size(eps)
    with evaluation_mode(view):
        return pgd(view, x, y, eps=eps, steps=config.attack_steps, step_size=step_size, generator=generator)


def _step(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    optimiser: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    *,
    radius: float,
    masks: Mapping[str, Tensor],
    smoothing: float,
) -> float:
    """One optimiser step, its gradient taken at the perturbed weights if `radius` > 0; the loss there."""

    def loss_here() -> Tensor:
        return cross_entropy(model(x), y, label_smoothing=smoothing)

    named = {name: p for name, p in parameters.items() if p.requires_grad}
    step: dict[str, Tensor] = {}
    if radius:
        with batch_norm_statistics_frozen(model):
            gradients = dict(zip(named, torch.autograd.grad(loss_here(), list(named.values())), strict=True))
        weights = {name: p for name, p in named.items() if p.dim() > 1}
        step = weight_perturbation(weights, gradients, radius, masks)
    with perturbed(parameters, step):
        loss = loss_here()
        gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    for name, gradient in gradients.items():
        named[name].grad = gradient.masked_fill(~masks[name], 0.0) if name in masks else gradient
    optimiser.step()
    apply_masks(parameters, masks)
    return float(loss.detach())
