"""The purifiers that the benchmark compares: ours with one thing changed at a time, and the baselines."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from s2ap_train.purifier import Purification, hadamard_bank
from s2ap_train.purifier.variants import (
    Variant,
    bit_depth,
    jpeg,
    likelihood_maximisation,
    noise_and_denoise,
    off,
    one_step_denoise,
    purification,
    score_opt,
)

Shape = tuple[int, int, int]
Make = Callable[[nn.Module, Shape], Variant]

RECIPE = "recipe"
"""Name of the recipe's own purifier."""


@dataclass(frozen=True)
class Preset:
    """How large the benchmark is for a recipe, and the wide purifier of the specification at its scale.

    Attributes:
        samples: Test images that are attacked.
        steps: Gradient steps of every attack that differentiates the purifier.
        cheap_steps: Steps of those that do not.
        queries: Of Square, an image.
        restarts: Of every gradient attack.
        draws: Purifications that are averaged where one draws noise.
        eps: Budgets of the curve over eps, pixels in [0, 1].
        curve_steps: Attack steps of the curve over steps.
        curve_samples: Test images of both curves, the first of those that are attacked; None: all.
        wide: The purifier of the specification's table.
        j_free_sigma: Its noise level in J-free mode.
        left_out: Names of variants that would take hours.
    """

    samples: int
    steps: int
    cheap_steps: int
    queries: int
    restarts: int
    draws: int
    eps: tuple[float, ...]
    curve_steps: tuple[int, ...]
    wide: Purification
    j_free_sigma: float
    curve_samples: int | None = None
    left_out: tuple[str, ...] = field(default=())


DIGITS = Preset(
    samples=50,
    steps=10,
    cheap_steps=20,
    queries=200,
    restarts=1,
    draws=6,
    eps=(0.0, 0.1, 0.15, 0.2, 0.25, 0.3),
    curve_steps=(1, 3, 10, 30),
    wide=Purification(sigma=0.3, radius=0.3, steps=3, step_size=0.7, rho=0.2, bank_size=4),
    j_free_sigma=0.1,
)
CIFAR = Preset(
    samples=60,
    steps=10,
    cheap_steps=20,
    queries=100,
    restarts=1,
    draws=4,
    eps=(0.0, 2 / 255, 4 / 255, 8 / 255, 16 / 255, 32 / 255, 64 / 255),
    curve_steps=(1, 5, 10, 20),
    wide=Purification(sigma=0.125, radius=16 / 255, steps=3, step_size=0.7, rho=0.3, bank_size=4),
    j_free_sigma=0.125,
)
FASHION = replace(
    CIFAR,
    samples=1000,
    eps=(0.0, 0.05, 0.1, 0.2, 0.3, 0.5),
    wide=replace(CIFAR.wide, sigma=0.3, radius=0.2, rho=0.2),
    j_free_sigma=0.2,
    curve_samples=50,
)
PRESETS: Mapping[str, Preset] = {"digits": DIGITS, "fashion": FASHION}


def variants(base: Purification, preset: Preset) -> dict[str, Make]:
    """All variants by name: what makes each from the score model and the shape (C, H, W) of an image.

    Args:
        base: The recipe's purifier; if it is off, there is no row of it but 'off'.
        preset: The wide purifier.
    """
    wide = preset.wide
    falling = tuple(wide.sigmas[0] * (1 - i / (2 * wide.steps)) for i in range(wide.steps))
    recipes = {
        RECIPE: base,
        "recipe, rho 0": replace(base, rho=0.0),
        "recipe, J-free": replace(base, mode="j_free"),
        "recipe, J-free, rho 0": replace(base, mode="j_free", rho=0.0),
        "recipe, another bank": replace(base, bank_seed=base.bank_seed + 1),
    }
    ours = ({} if base.off else recipes) | {
        "wide": wide,
        "wide, rho 0": replace(wide, rho=0.0),
        "wide, reused ascent": replace(wide, reuse_ascent=True),
        "wide, J-free": replace(wide, mode="j_free", sigma=preset.j_free_sigma),
        "wide, sigma falls": replace(wide, sigma=falling),
        "wide, l2 ball": replace(wide, norm="l2", radius=wide.rho * 4),
    }
    made: dict[str, Make] = {"off": lambda net, shape: off()}  # noqa: ARG005
    made |= {name: _ours(name, config) for name, config in ours.items()}
    others: dict[str, Make] = {
        "one-step denoise": lambda net, shape: one_step_denoise(net, preset.j_free_sigma),  # noqa: ARG005
        "noise and denoise": lambda net, shape: noise_and_denoise(net, preset.j_free_sigma, 0),  # noqa: ARG005
        "ScoreOpt-style": score_opt,
        "LM-style": lambda net, shape: likelihood_maximisation(net, shape, radius=wide.radius),
        "bit depth 3": lambda net, shape: bit_depth(3),  # noqa: ARG005
        "JPEG 75": lambda net, shape: jpeg(75),  # noqa: ARG005
    }
    return {name: make for name, make in (made | others).items() if name not in preset.left_out}


def _ours(name: str, config: Purification) -> Make:
    def make(net: nn.Module, shape: Shape) -> Variant:
        return purification(name, net, hadamard_bank(config.bank_size, shape, config.bank_seed), config)

    return make
