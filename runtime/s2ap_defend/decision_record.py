"""What a manifest says of the decision: who answers, when images are purified, and what other choices keep and cost."""

from typing import Annotated, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from s2ap_defend.manifest_fields import Amount, Count, ManifestTable, Positive, Rate, check_accuracies
from s2ap_defend.sequential import AMPLIFICATION_UNIT, LARGEST_AMPLIFICATION, Answer, Correction, SignalName

__all__ = [
    "Amplification",
    "CostIn",
    "DecisionDescription",
    "DecisionSettings",
    "Frontier",
    "FrontierRow",
    "Purify",
    "Role",
    "Sees",
]

Purify = Literal["always", "suspicious", "off"]
"""Which images are purified: all; those that are not accepted in the opening; none."""
Role = Literal["juror", "sensor"]
"""A juror is robust and may vote on the label; a sensor only gives evidence."""
Sees = Literal["raw", "purified"]
"""The image that a member sees: as it came, or behind the purifier."""
CostIn = Literal["operations", "time"]
"""What the cost of an image is counted in."""
Amplification = Annotated[float, Field(gt=0, le=LARGEST_AMPLIFICATION, multiple_of=AMPLIFICATION_UNIT)]


class DecisionSettings(ManifestTable):
    """What calibration chooses of a decision.

    Attributes:
        answer: Who gives the label of an input that is not flagged: 'robust' the vote of the jurors asked, 'mixed'
            classifier and jury together, 'accurate' the classifier.
        jury_share: Weight of the jury's amplified mean probability in the mix; the classifier's is the rest.
        amplification: Power that the jury's mean probability is raised to in the mix, then normalised; a multiple of
            1/2, at most 16.
        purify: Which images are purified.
    """

    answer: Answer
    jury_share: Rate
    amplification: Amplification
    purify: Purify

    @property
    def who_answers(self) -> str:
        """Who gives the label of an input that is not flagged."""
        return {
            "robust": "the jury",
            "mixed": f"{1 - self.jury_share:.3g} classifier + {self.jury_share:.3g} jury^{self.amplification:g}",
            "accurate": "the classifier",
        }[self.answer]

    @property
    def in_words(self) -> str:
        """The settings in one line."""
        who = {
            "robust": f"{self.who_answers} answers",
            "mixed": f"{self.who_answers} answer",
            "accurate": f"{self.who_answers} answers, the jury where it is flagged",
        }[self.answer]
        when = {"always": "every image", "suspicious": "what the opening does not accept", "off": "nothing"}[
            self.purify
        ]
        return f"{who}; purified is {when}"


class FrontierRow(DecisionSettings):
    """What one choice keeps and costs on the images of a frontier.

    Attributes:
        juror_weight: Vote weight of every juror but the first.
        opening: Jurors that every input is asked.
        jurors_see: The image that jurors see.
        sensors_see: The image that sensors see; 'nothing': they were left out.
        signals: Evidence that costs no member.
        correction: What flagged images get; missing where it is 'correct'.
        min_accept: Members that are asked at least before an input is called clean.
        clean_accuracy: Answered and right, without attack.
        clean_flagged: Flagged without attack.
        label_accuracy: Final label right under every attack that was made, flagged or not.
        robust_accuracy: Final label right, or flagged, or not answered, under every attack that was made.
        members_used: Members asked of a clean image, mean.
        cost: Of a clean image, as a multiple of the classifier's alone.
    """

    juror_weight: Rate
    opening: Positive
    jurors_see: Sees
    sensors_see: Sees | Literal["nothing"]
    signals: tuple[SignalName, ...]
    correction: Correction = "correct"
    min_accept: Positive
    clean_accuracy: Rate
    clean_flagged: Rate
    label_accuracy: Rate
    robust_accuracy: Rate
    members_used: Amount
    cost: Amount

    @model_serializer(mode="wrap")
    def _without_the_usual(self, serialise: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {key: value for key, value in serialise(self).items() if (key, value) != ("correction", "correct")}

    @model_validator(mode="after")
    def _right_is_right_or_flagged(self) -> "FrontierRow":
        check_accuracies(self.label_accuracy, self.robust_accuracy)
        return self

    @property
    def wiring(self) -> tuple[object, ...]:
        """Everything but who answers, and the numbers of the mix."""
        return (self.purify, self.juror_weight, self.opening, self.jurors_see, self.sensors_see, self.signals)


class Frontier(ManifestTable):
    """The choices that were compared under adaptive attacks, and why one of them was taken.

    Attributes:
        split: The images, such as 'validation'.
        samples: How many.
        eps: l_inf budget, pixels in [0, 1].
        seed: Of the attacks.
        attack: The attacks in words.
        label_cost: What a mix may lose against the jury under attack: of its labels, and of what is right or flagged.
        robust_classifier: The first juror alone on the same images: clean accuracy, and label accuracy under an attack
            of the same work on it and under all that was found for the choices.
        chosen: Index of the row that the file is.
        reason: Why, in a sentence.
        rows: The choices.
        cost_in: What their cost counts: floating-point operations, or the processor's time of the stages, in batches of
            64 on one thread of the machine that made the file; missing where it is 'operations'.
    """

    split: str
    samples: Positive
    eps: Amount
    seed: int
    attack: str
    label_cost: Rate
    robust_classifier: tuple[Rate, Rate] | None
    chosen: Count
    reason: str
    rows: Annotated[tuple[FrontierRow, ...], Field(min_length=1)]
    cost_in: CostIn = "operations"

    @model_serializer(mode="wrap")
    def _without_the_usual(self, serialise: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {key: value for key, value in serialise(self).items() if (key, value) != ("cost_in", "operations")}

    @model_validator(mode="after")
    def _holds_the_chosen(self) -> "Frontier":
        if self.chosen >= len(self.rows):
            raise ValueError(f"row {self.chosen} is chosen, there are {len(self.rows)}")
        return self


class DecisionDescription(DecisionSettings):
    """The decision of a file.

    Attributes:
        frontier: What other choices keep and cost; null: none were compared.
    """

    frontier: Frontier | None

    @model_validator(mode="after")
    def _is_the_chosen(self) -> "DecisionDescription":
        if self.frontier is not None:
            row = self.frontier.rows[self.frontier.chosen]
            for name in DecisionSettings.model_fields:
                if getattr(row, name) != getattr(self, name):
                    raise ValueError(
                        f"{name} is {getattr(self, name)!r}, the chosen row of the frontier has {getattr(row, name)!r}"
                    )
        return self
