"""Which purifiers are tried when one is chosen: the `[choice]` table of a recipe, and the list that it stands for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from s2ap_defend.errors import RecipeError
from s2ap_defend.manifest import PurifierSettings
from s2ap_train.purifier.bank import largest_bank
from s2ap_train.purifier.purify import Mode, Purification

__all__ = [
    "OFF",
    "ChoiceSettings",
    "PurifierValues",
    "canonical",
    "check_banks",
    "check_trained",
    "default_values",
    "grid",
    "settings_of",
    "without_ascent",
]


OFF = Purification(radius=0.0, steps=0, rho=0.0, bank_size=2)
"""No purifier, in the one way in which it is written."""


class PurifierValues(BaseModel):
    """Keys of `[purifier]`, each with a list of values; every combination is one purifier.

    What is not given is the recipe's.

    Attributes:
        sigma: Noise levels; each a number, or a schedule with one number a step.
        radius: Radii of the ball.
        step_size: Factors of the half gradient.
        steps, rho, mode, norm, reuse_ascent, bank_size, bank_seed: As in `[purifier]`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sigma: Annotated[tuple[float | tuple[float, ...], ...], Field(min_length=1)] | None = None
    radius: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    steps: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    step_size: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    rho: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    mode: Annotated[tuple[Mode, ...], Field(min_length=1)] | None = None
    norm: Annotated[tuple[Literal["linf", "l2"], ...], Field(min_length=1)] | None = None
    reuse_ascent: Annotated[tuple[bool, ...], Field(min_length=1)] | None = None
    bank_size: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    bank_seed: Annotated[tuple[int, ...], Field(min_length=1)] | None = None

    def combinations(self) -> list[dict[str, Any]]:
        """Every combination of the values, the last key changing fastest."""
        given = {key: values for key, values in self if values is not None}
        return [dict(zip(given, one, strict=True)) for one in product(*given.values())]


@dataclass(frozen=True)
class ChoiceSettings:
    """The sweep: how many validation images, how strong an attack, which purifiers.

    Attributes:
        samples: Validation images; fewer where there are not as many.
        steps: Gradient steps of each descent of the attack.
        restarts: How often the plan of the attack is run, each time from other random starts.
        square_queries: Queries per image of the black-box attack on the chosen purifier, its twin with rho 0 and off;
            0: none.
        settings: Tables of values over the keys of `[purifier]`. Off, the recipe's purifier and the same with rho 0
            are always tried.
    """

    samples: int = 100
    steps: int = 15
    restarts: int = 1
    square_queries: int = 300
    settings: tuple[PurifierValues, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what measures nothing.

        Raises:
            RecipeError: If there are fewer than 10 samples, no step or restart, or queries below 0.
        """
        if self.samples < 10 or min(self.steps, self.restarts) < 1 or self.square_queries < 0:
            raise RecipeError(
                f"samples {self.samples}, steps {self.steps}, restarts {self.restarts}, square_queries "
                f"{self.square_queries}: samples starts at 10, steps and restarts at 1, square_queries at 0"
            )


def grid(own: Purification, tables: Sequence[PurifierValues]) -> tuple[Purification, ...]:
    """All purifiers to try, each once: off, the recipe's own, the same with rho 0, then the tables in order.

    Raises:
        RecipeError: If a combination is no purifier.
    """
    tried = [OFF, canonical(own), without_ascent(own)]
    for place, table in enumerate(tables):
        for values in table.combinations():
            try:
                tried.append(canonical(replace(own, **values)))
            except RecipeError as error:
                raise RecipeError(f"choice.settings.{place}: {error}") from error
    return tuple(dict.fromkeys(tried))


def default_values(own: Purification, sigma_range: tuple[float, float]) -> tuple[PurifierValues, ...]:
    """A small grid around a purifier: half and double sigma and radius, another number of steps, the other gradient.

    Args:
        own: The purifier; one that is off is taken with one step.
        sigma_range: Noise levels that the score model was trained on; others are not tried.
    """
    low, high = sigma_range
    sigma = min(max(_first(own), low), high) if own.off else _first(own)
    sigmas = [value for value in (sigma / 2, sigma * 2) if low <= value <= high]
    steps = (max(own.steps, 1),)
    other: Mode = "j_free" if own.mode == "full" else "full"
    around = [
        PurifierValues(sigma=(sigma,), steps=steps, radius=(own.radius / 2, own.radius * 2)),
        PurifierValues(sigma=(sigma,), steps=steps, mode=(other,), rho=tuple(dict.fromkeys((own.rho, 0.0)))),
    ]
    if sigmas:
        around.insert(0, PurifierValues(sigma=tuple(sigmas), steps=steps))
    return (*around, PurifierValues(sigma=(sigma,), steps=(1 if steps[0] > 1 else 3,)))


def check_trained(configs: Iterable[Purification], sigma_range: tuple[float, float]) -> None:
    """Refuse purifiers that ask the score model at a noise level that it was not trained on.

    Args:
        configs: The purifiers.
        sigma_range: Smallest and largest noise of the training, pixels.

    Raises:
        RecipeError: With the first such level.
    """
    low, high = sigma_range
    for sigma in (sigma for config in configs for sigma in config.sigmas):
        if not low <= sigma <= high:
            raise RecipeError(
                f"a purifier asks the score model at sigma {sigma:g}, which is trained from sigma_min {low:g} to "
                f"sigma_max {high:g} alone; change that sigma, or score_model.sigma_min or sigma_max"
            )


def check_banks(configs: Iterable[Purification], image_shape: tuple[int, int, int]) -> None:
    """Refuse purifiers with more noise directions than images (C, H, W) allow.

    Raises:
        RecipeError: With the first such number.
    """
    most = largest_bank(image_shape)
    for config in configs:
        if config.bank_size > most:
            raise RecipeError(
                f"a purifier has bank_size {config.bank_size}, but images of {'x'.join(map(str, image_shape))} allow "
                f"at most {most} directions; lower purifier.bank_size or that of choice.settings"
            )


def canonical(config: Purification) -> Purification:
    """The same purifier in the one way in which it is written: equal exactly when the purifiers are.

    One that is off has no radius, no ascent and no bank; without an ascent, or before a second step, there is none to
    reuse; a schedule of equal levels is one level.
    """
    sigma = config.sigma
    if isinstance(sigma, tuple) and len({*sigma}) == 1:
        sigma = sigma[0]
    if config.off:
        return OFF
    return replace(config, sigma=sigma, reuse_ascent=config.reuse_ascent and config.rho > 0 and config.steps > 1)


def without_ascent(config: Purification) -> Purification:
    """The same purifier with rho 0: plain descent."""
    return canonical(replace(config, rho=0.0))


def settings_of(config: Purification) -> PurifierSettings:
    """The settings in the words of the manifest."""
    return PurifierSettings(
        mode=config.mode,
        norm=config.norm,
        sigmas=config.sigmas,
        radius=config.radius,
        steps=config.steps,
        step_size=config.step_size,
        rho=config.rho,
        reuse_ascent=config.reuse_ascent,
        bank_size=config.bank_size,
        bank_seed=config.bank_seed,
    )


def _first(config: Purification) -> float:
    """A single sigma: the first of a schedule, any where there is none."""
    if not isinstance(config.sigma, tuple):
        return config.sigma
    return config.sigma[0] if config.sigma else Purification.sigma  # type: ignore[return-value]
