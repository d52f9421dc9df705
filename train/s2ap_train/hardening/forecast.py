"""How long a hardening will take: a few timed steps of its networks, times how often each is computed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from s2ap_train.compute.threads import one_thread
from s2ap_train.data import Splits
from s2ap_train.hardening.attack_forecast import Gradients, Phase, StoredAttacks, attack_phases
from s2ap_train.hardening.network import VALIDATION_ATTACK_STEPS
from s2ap_train.hardening.part_names import ADVERSARIAL, JURY, PLAIN, PRUNED, jurors_of, member_name
from s2ap_train.hardening.purifier_choice import By, check_grid
from s2ap_train.hardening.score_model import NAME as SCORE_MODEL
from s2ap_train.hardening.score_model import TEACHER
from s2ap_train.hardening.surrogate import lacked_gradients
from s2ap_train.models import ModelTable, create
from s2ap_train.purifier import UNet, hadamard_bank, purify
from s2ap_train.recipe import Recipe
from s2ap_train.training import TrainingConfig

__all__ = ["Forecast", "forecast"]

_TIMED = 32  # images of a timed step
_S2AP = 2.0  # gradients of one step with the ascent on scores


@dataclass(frozen=True)
class Forecast:
    """What a hardening will do.

    Attributes:
        phases: In the order of the work.
        disk: Bytes of the checkpoints.
    """

    phases: tuple[Phase, ...]
    disk: int

    @property
    def by_name(self) -> dict[str, float]:
        """Seconds of every phase on one core."""
        return {phase.name: phase.seconds for phase in self.phases}

    def seconds(self, workers: int) -> float:
        """Of the whole, where so many processes compute: the longest chain of parts cannot be shared."""
        total = sum(self.by_name.values())
        chain = sum(self.by_name.get(name, 0.0) for name in (PLAIN, ADVERSARIAL, PRUNED))
        return max(total / max(workers, 1), chain)


def forecast(
    recipe: Recipe, splits: Splits, stored: StoredAttacks | None = None, *, choose: By | None = None
) -> Forecast:
    """Time a gradient step of every network of a recipe, untrained, and add up how often each is computed.

    A rough figure: it knows nothing of early stops of a training or of what an evaluation finds. Times are those of
    the processor, so other programs on the machine do not change them.

    Args:
        recipe: What is to be done.
        splits: Its data.
        stored: Attacks that are done already; None: none is.
        choose: Who decides on the purifier; None: no purifiers are compared.
    """
    with one_thread():
        return _forecast(recipe, splits, stored or StoredAttacks(), choose)


def _forecast(recipe: Recipe, splits: Splits, stored: StoredAttacks, choose: By | None) -> Forecast:
    shape, classes = splits.image_shape, len(splits.classes)
    trained, validated = len(splits.train), len(splits.validation)
    known: dict[str, tuple[float, int]] = {}

    def cost(table: ModelTable) -> tuple[float, int]:
        """Seconds of a gradient with respect to one image, and bytes of the weights."""
        name = repr(table)
        if name not in known:
            model = create(table, shape, classes)
            known[name] = _gradient_seconds(model, shape), 4 * sum(p.numel() for p in model.parameters())
        return known[name]

    def training(config: TrainingConfig, table: ModelTable, factor: float = 1.0) -> float:
        passes = 1 + (config.attack_steps if config.adversarial else 0)
        judged = -(-config.epochs // config.validate_every) * (config.validation_steps if config.adversarial else 1)
        return cost(table)[0] * (config.epochs * trained * passes * factor + judged * validated)

    closing = (1 + VALIDATION_ATTACK_STEPS) * validated
    parts: dict[str, tuple[float, ModelTable]] = {}
    given = recipe.given
    blind = bool(lacked_gradients(recipe.model, splits))  # a surrogate is trained
    known_already = given.classifier is not None or (recipe.from_onnx and not blind)
    plain = 0.0 if known_already else training(recipe.plain, recipe.model)
    adversarial = 0.0 if given.robust is not None else training(recipe.adversarial, recipe.robust_model)
    parts[PLAIN] = plain, recipe.model
    parts[ADVERSARIAL] = adversarial, recipe.robust_model
    parts[PRUNED] = _within((recipe.pruning, recipe.finetune), training, recipe.robust_model), recipe.robust_model
    for name, family in recipe.members.items():
        for number in range(family.count):
            own = family.network(number)
            table = recipe.model if own is None else own
            parts[member_name(name, number)] = _within(family.decides(number), training, table), table
    phases = [Phase(name, seconds + closing * cost(table)[0]) for name, (seconds, table) in parts.items()]
    disk = sum(cost(table)[1] * 2 for _, table in parts.values())
    if recipe.jury_training is not None:
        tables = [parts[member_name(*one)][1] for one in jurors_of(recipe)]
        together = sum(training(recipe.jury_training, table) + 2 * closing * cost(table)[0] for table in tables)
        phases.append(Phase(JURY, together))
        disk += sum(cost(table)[1] for table in tables)
    score_seconds, a_pass, size = _purifier_seconds(recipe, shape)
    score = recipe.score_model.epochs * trained * score_seconds
    phases.insert(0, Phase(SCORE_MODEL, score))
    if teacher := recipe.score_model.of_teacher():
        model = UNet(shape[0], *teacher.architecture(shape))
        phases.insert(0, Phase(TEACHER, teacher.epochs * trained * _training_seconds(model, shape)))
    classifier = cost(recipe.model)[0]
    members = sum(cost(table)[0] for name, (_, table) in parts.items() if name not in (PLAIN, ADVERSARIAL))
    gradients = Gradients(classifier, members, a_pass * recipe.purifier.work, a_pass)
    attacks = attack_phases(recipe, splits, gradients, stored, choose=choose)
    return Forecast((*phases, *attacks), disk + size)


def _within(settings: object, training: Callable[..., float], table: ModelTable) -> float:
    """Seconds of every training that settings hold; one next to the settings of S2AP ascends, too."""
    if isinstance(settings, TrainingConfig):
        return training(settings, table)
    if isinstance(settings, tuple):
        return sum(_within(one, training, table) for one in settings)
    if not is_dataclass(settings):
        return 0.0
    factor = _S2AP if getattr(settings, "s2ap", None) is not None else 1.0
    values = (getattr(settings, one.name) for one in fields(settings))
    return sum(training(value, table, factor) for value in values if isinstance(value, TrainingConfig))


def _gradient_seconds(model: nn.Module, shape: tuple[int, int, int]) -> float:
    """Seconds of a forward and backward pass for one image in a batch, the better of two after a warm-up."""
    images = torch.rand((_TIMED, *shape), generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(_TIMED, dtype=torch.int64)

    images.requires_grad_()

    def step() -> None:
        model.zero_grad()
        cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]

    return _timed(step) / _TIMED


def _training_seconds(model: UNet, shape: tuple[int, int, int]) -> float:
    """A training step of a score model, seconds an image."""
    images = torch.rand((_TIMED, *shape), generator=torch.Generator().manual_seed(0))

    def train() -> None:
        model(images, 0.1).square().mean().backward()

    return _timed(train) / _TIMED


def _purifier_seconds(recipe: Recipe, shape: tuple[int, int, int]) -> tuple[float, float, int]:
    """(a training step of the score model, a gradient through one unit of a purifier's work, bytes of its weights).

    Seconds an image; the work is that of the recipe's purifier, or of one step where it is off.
    """
    model = UNet(shape[0], *recipe.score_model.architecture(shape), blocks=recipe.score_model.blocks).eval()
    images = torch.rand((_TIMED, *shape), generator=torch.Generator().manual_seed(0))
    size = 4 * sum(p.numel() for p in model.parameters())
    training = _training_seconds(model, shape)
    timed = next((one for one in (recipe.purifier, *check_grid(recipe)) if not one.off), None)
    if timed is None:
        return training, 0.0, size
    bank = hadamard_bank(timed.bank_size, shape, timed.bank_seed)

    def through() -> None:
        x: Tensor = images.clone().requires_grad_()
        purify(model, x, bank, timed)[0].sum().backward()  # type: ignore[no-untyped-call]

    return training, _timed(through) / _TIMED / timed.work, size


def _timed(step: Callable[[], None]) -> float:
    times = []
    for _ in range(3):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return min(times[1:])
