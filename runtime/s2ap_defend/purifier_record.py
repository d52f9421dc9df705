"""What a manifest says of the purifier: its settings, and how they were chosen under a white-box attack."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from s2ap_defend.manifest_fields import ROUNDING, Amount, Count, ManifestTable, Positive, Rate, Sha256
from s2ap_defend.precision_record import PurifierPrecision

__all__ = ["ChoiceRecord", "ChoiceRow", "PurifierDescription", "PurifierSettings", "Reference", "Ungraded"]

Above0 = Annotated[float, Field(gt=0)]


class PurifierSettings(ManifestTable):
    """Settings of a purifier; lengths in [0, 1] pixels.

    Attributes:
        mode: 'full' gradient of the reconstruction error, or 'j_free', without the denoiser's Jacobian.
        norm: Norm of the ball about the input.
        sigmas: Noise level of every step; empty when the purifier is off.
        radius: Radius of the ball.
        steps: Descent steps; 0: off, the purified image is the image.
        step_size: Factor of the half gradient.
        rho: Amount of the ascent before a step (sharpness-aware minimisation); 0 is plain descent.
        reuse_ascent: Whether the ascent goes along the previous step's gradient.
        bank_size: Number of noise directions.
        bank_seed: Their seed.
    """

    mode: Literal["full", "j_free"]
    norm: Literal["linf", "l2"]
    sigmas: tuple[Above0, ...]
    radius: Amount
    steps: Count
    step_size: Above0
    rho: Amount
    reuse_ascent: bool
    bank_size: Positive
    bank_seed: int

    @model_validator(mode="after")
    def _one_sigma_a_step(self) -> "PurifierSettings":
        if len(self.sigmas) != self.steps:
            raise ValueError(f"sigmas holds {len(self.sigmas)} noise levels for {self.steps} steps")
        if self.bank_size % 2:
            raise ValueError(f"bank_size is {self.bank_size}; directions come in pairs, it must be even")
        return self

    @property
    def passes(self) -> int:
        """Passes of the score network for one image, forward and backward each one (docs/purifier.md)."""
        if self.off:
            return 0
        gradient = 2 if self.mode == "full" else 1
        ascents = 0 if self.rho == 0 else 1 if self.reuse_ascent else self.steps
        return gradient * (self.steps + ascents) * self.bank_size

    @property
    def off(self) -> bool:
        """Whether it returns images as they are."""
        return self.steps == 0

    @property
    def in_words(self) -> str:
        """The settings in one line."""
        if self.off:
            return "off"
        sigmas = self.sigmas[:1] if len({*self.sigmas}) == 1 else self.sigmas
        kind = "full gradient" if self.mode == "full" else "J-free"
        steps = f"{self.steps} step{'s' if self.steps > 1 else ''} of {self.step_size:g}"
        reused = " (reused ascent)" if self.reuse_ascent and self.rho > 0 else ""
        return (
            f"{kind}, sigma {' '.join(f'{sigma:g}' for sigma in sigmas)}, radius {self.radius:g} {self.norm}, {steps}, "
            f"rho {self.rho:g}{reused}, bank of {self.bank_size}"
        )


class Ungraded(ManifestTable):
    """How many images attacks that need no exact gradient broke, of those that the exact gradient had left.

    Attributes:
        bpda: With the gradient of the identity in the purifier's place.
        surrogate: With the gradient of its J-free form.
        square: With answers alone; null: not tried.
    """

    bpda: Count
    surrogate: Count
    square: Count | None

    @property
    def total(self) -> int:
        """All of them."""
        return self.bpda + self.surrogate + (self.square or 0)


class ChoiceRow(PurifierSettings):
    """One purifier that was tried, in front of the classifier and the members, and what was left under attack.

    Attributes:
        clean_accuracy: Without attack.
        oblivious_accuracy: Under an attack made without the purifier.
        gradient_accuracy: Under both, and the descents along this purifier's own exact gradient.
        ungraded: What other attacks on this purifier broke of that.
        adaptive_accuracy: Per image the worst of all attacks, those on the other rows included; the attacker knows the
            purifier and differentiates through it.
        adaptive_interval: Its 95 % Clopper-Pearson interval.
        p_against_off: Exact two-sided McNemar test of adaptive_accuracy against the row that is off, on the same
            images; null for that row.
        p_against_rho_0: The same against the row that differs in rho = 0 alone; null where there is none.
        network_passes: Passes of the score network for one image, forward and backward each one.
        milliseconds: Time of one image, where the sweep ran.
    """

    clean_accuracy: Rate
    oblivious_accuracy: Rate
    gradient_accuracy: Rate
    ungraded: Ungraded
    adaptive_accuracy: Rate
    adaptive_interval: tuple[Rate, Rate]
    p_against_off: Rate | None
    p_against_rho_0: Rate | None
    network_passes: Count
    milliseconds: Amount


class Reference(ManifestTable):
    """A classifier alone, without purifier and members, under the same attack on the same images.

    Attributes:
        name: Which one.
        clean_accuracy: Without attack.
        adaptive_accuracy: Under attack.
    """

    name: str
    clean_accuracy: Rate
    adaptive_accuracy: Rate


class ChoiceRecord(ManifestTable):
    """How the purifier was chosen.

    Attributes:
        by: 'recipe': it is the recipe's and the table was measured next to it; 'validation': the table decided;
            'decision': the decision, chosen afterwards, purifies nothing, so it is the row that is off.
        chosen: Index of the purifier in `rows`.
        reason: In plain words: which one, why, and whether a part of it lowers the adaptive figure.
        split: The images that it was measured on.
        samples: How many they were.
        eps: l_inf budget of the attack, pixels in [0, 1].
        seed: Of images and attack.
        attack: What the attacker did.
        defended: What stood behind the purifier.
        reference: What a purifier has to beat to be worth its place; null: not measured.
        rows: Every purifier that was tried; one of them is off.
    """

    by: Literal["recipe", "validation", "decision"]
    chosen: Count
    reason: Annotated[str, Field(min_length=1)]
    split: str
    samples: Positive
    eps: Amount
    seed: int
    attack: str
    defended: str
    reference: Reference | None
    rows: Annotated[tuple[ChoiceRow, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_a_row(self) -> "ChoiceRecord":
        if self.chosen >= len(self.rows):
            raise ValueError(f"chosen is {self.chosen}, there are {len(self.rows)} rows")
        off = [row for row in self.rows if row.off]
        if len(off) != 1:
            raise ValueError(f"one row must be off, found {len(off)}")
        if len({tuple(getattr(row, key) for key in PurifierSettings.model_fields) for row in self.rows}) < len(
            self.rows
        ):
            raise ValueError("two rows have the same settings")
        for i, row in enumerate(self.rows):
            for key, wrong in _wrong_in(row, self.samples):
                raise ValueError(f"rows.{i}.{key} {wrong}")
        if self.by == "decision" and not self.rows[self.chosen].off:
            raise ValueError(f"chosen is {self.chosen} by a decision that purifies nothing, but that row is not off")
        highest = max(row.adaptive_accuracy for row in self.rows)
        chosen, passes = self.rows[self.chosen], [r.passes for r in self.rows if r.adaptive_accuracy == highest]
        if self.by == "validation" and (chosen.adaptive_accuracy, chosen.passes) != (highest, min(passes)):
            raise ValueError(
                f"chosen is {self.chosen} by validation, with adaptive_accuracy {chosen.adaptive_accuracy:g} and "
                f"{chosen.passes} network passes; another row has {highest:g} with {min(passes)}"
            )
        if self.reference is not None:
            for key in ("clean_accuracy", "adaptive_accuracy"):
                if not _is_share(getattr(self.reference, key), self.samples):
                    raise ValueError(f"reference.{key} is no share of {self.samples} images")
            if self.reference.adaptive_accuracy > self.reference.clean_accuracy:
                raise ValueError("reference.adaptive_accuracy is above its clean_accuracy")
        return self

    @property
    def off(self) -> ChoiceRow:
        """The row without a purifier."""
        return next(row for row in self.rows if row.off)


class PurifierDescription(PurifierSettings):
    """The purifier that is inside the graph.

    Attributes:
        bank_sha256: Of the float32 noise directions.
        precision: What its convolutions compute in; norms and sums are always float32.
        choice: How it was chosen; null: not measured.
    """

    bank_sha256: Sha256
    precision: PurifierPrecision
    choice: ChoiceRecord | None

    @model_validator(mode="after")
    def _is_the_chosen_one(self) -> "PurifierDescription":
        if self.choice is None:
            return self
        row = self.choice.rows[self.choice.chosen]
        for key in PurifierSettings.model_fields:
            if getattr(self, key) != getattr(row, key):
                raise ValueError(
                    f"choice.rows.{self.choice.chosen} is chosen with {key} {getattr(row, key)!r}, the purifier has "
                    f"{getattr(self, key)!r}"
                )
        return self


def _wrong_in(row: ChoiceRow, samples: int) -> Iterator[tuple[str, str]]:
    """Keys of a row that contradict others, with what is wrong."""
    for key in ("clean_accuracy", "oblivious_accuracy", "gradient_accuracy", "adaptive_accuracy"):
        if not _is_share(getattr(row, key), samples):
            yield key, f"{getattr(row, key)} is no share of {samples} images"
    for key in ("clean_accuracy", "oblivious_accuracy"):
        if row.gradient_accuracy > getattr(row, key) + ROUNDING:
            yield "gradient_accuracy", f"{row.gradient_accuracy} is above {key} {getattr(row, key)}"
    left = row.gradient_accuracy - row.ungraded.total / samples
    if row.adaptive_accuracy > left + ROUNDING:
        yield (
            "adaptive_accuracy",
            f"{row.adaptive_accuracy} is above {left:g}, what the attacks on this row alone leave",
        )
    low, high = row.adaptive_interval
    if not low <= row.adaptive_accuracy <= high:
        yield "adaptive_interval", f"does not hold adaptive_accuracy {row.adaptive_accuracy}"
    if (row.p_against_off is None) is not row.off:
        yield "p_against_off", "must be null for the row that is off, and for no other"
    if row.p_against_rho_0 is not None and (row.off or row.rho == 0):
        yield "p_against_rho_0", "must be null for a row that is off or has rho 0"
    if row.network_passes != row.passes:
        yield "network_passes", f"is {row.network_passes}, these settings take {row.passes}"


def _is_share(rate: float, samples: int) -> bool:
    return abs(rate * samples - round(rate * samples)) <= ROUNDING * samples
