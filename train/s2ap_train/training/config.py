"""Hyper-parameters of training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from s2ap_defend.errors import RecipeError

RobustLoss = Literal["pgd", "trades", "mart", "natural"]
_COUNTS = {"epochs", "batch_size", "attack_steps", "validation_steps", "validate_every"}
_BETA: Mapping[str, float] = {"trades": 6.0, "mart": 5.0}  # Zhang et al. 2019, section 5; Wang et al. 2020, section 4


@dataclass(frozen=True)
class TrainingConfig:
    """Hyper-parameters of `train_classifier` and of every other loop that trains on adversarial examples.

    Natural training must be said: `loss` "natural" goes with `eps` 0, every other loss with an `eps` above it.

    Attributes:
        epochs: Passes over the training images.
        lr: Learning rate at first; it falls to zero.
        batch_size: Images a step.
        weight_decay: Of the weights.
        momentum: Of stochastic gradient descent.
        label_smoothing: Of the cross-entropy terms.
        shift: Largest random shift of a training image, pixels, edges filled with 0.
        average_decay: Of the exponential moving average of weights that is validated and returned; 0: none.
        eps: L_inf budget of the attack, pixels in [0, 1].
        eps_warmup_epochs: Eps rises linearly from 0 over these.
        attack_steps: PGD steps of the attack that is trained on.
        attack_step_size: Length of one, pixels; None: 2.5 eps / attack_steps.
        weight_radius: Of adversarial weight perturbation, relative to each weight's norm; 0: none.
        weight_warmup_epochs: Epochs before the perturbation of weights starts.
        validation_steps: PGD steps of the robust validation accuracy.
        validate_every: Epochs between validations; the last epoch always is validated.
        loss: "pgd", "trades" and "mart" train on attacked images, "natural" on clean ones.
        beta: Weight of the KL term of "trades" (None: 6) and "mart" (None: 5).
        flip: Mirror each training image left to right with probability 1/2.
        patience: Validated epochs without a better one before training stops; 0: it never stops early.
    """

    epochs: int = 20
    lr: float = 0.1
    batch_size: int = 100
    weight_decay: float = 5e-4
    momentum: float = 0.9
    label_smoothing: float = 0.0
    shift: int = 0
    average_decay: float = 0.0
    eps: float = 8 / 255
    eps_warmup_epochs: int = 0
    attack_steps: int = 5
    attack_step_size: float | None = None
    weight_radius: float = 0.0
    weight_warmup_epochs: int = 0
    validation_steps: int = 10
    validate_every: int = 1
    loss: RobustLoss = "pgd"
    beta: float | None = None
    flip: bool = False
    patience: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            RecipeError: If a count is below one, a size, rate or radius is negative or not finite, the loss is unknown
                or does not go with `eps` or `beta`.
        """
        numbers = {name: value for name, value in vars(self).items() if isinstance(value, int | float)}
        wrong = [f"{name} = {value}" for name, value in numbers.items() if not _possible(name, value)]
        if wrong:
            raise RecipeError(
                f"this cannot be trained: {', '.join(wrong)}; counts start at 1, sizes at 0, average_decay and "
                "label_smoothing are below 1"
            )
        if self.loss not in get_args(RobustLoss):
            raise RecipeError(f"loss {self.loss!r} is not known; choose from {', '.join(get_args(RobustLoss))}")
        if self.loss == "natural" and self.eps:
            raise RecipeError(
                f'loss "natural" trains on clean images, but eps is {self.eps:g}; set eps = 0, or choose the loss '
                '"pgd", "trades" or "mart"'
            )
        if self.loss != "natural" and not self.eps:
            raise RecipeError(
                f'eps is 0, but loss "{self.loss}" trains on attacked images; set eps above 0, or say loss = "natural" '
                "if the network is not meant to be robust"
            )
        if self.beta is not None and self.loss not in _BETA:
            raise RecipeError(f'loss "{self.loss}" has no beta, found {self.beta:g}; leave it out')

    @property
    def adversarial(self) -> bool:
        """Whether training sees attacked images."""
        return self.loss != "natural"

    @property
    def kl_weight(self) -> float:
        """Weight of the KL term: `beta`, or the paper's; 0 for a loss without one."""
        return _BETA.get(self.loss, 0.0) if self.beta is None else self.beta

    def step_size(self, eps: float) -> float:
        """Length of an attack step at a given eps, pixels."""
        if self.attack_step_size is None:
            return 2.5 * eps / self.attack_steps
        return self.attack_step_size * (eps / self.eps if self.eps else 1.0)


def _possible(name: str, value: float) -> bool:
    if not math.isfinite(value) or value < (name in _COUNTS):
        return False
    return value < 1 or name not in {"average_decay", "label_smoothing"}
