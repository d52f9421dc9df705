"""Small tables of a recipe: what is measured, and how it is exported."""

from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from s2ap_defend.decision_record import Amplification, CostIn, Purify, Sees
from s2ap_defend.errors import RecipeError
from s2ap_defend.precision_record import Precision, PurifierPrecision
from s2ap_defend.sequential import Answer, SignalName
from s2ap_defend.sequential.tables import WEIGHT_UNIT
from s2ap_train.adaptive.budget import Gradients
from s2ap_train.models import ModelTable
from s2ap_train.settings import Table
from s2ap_train.training import TrainingConfig

__all__ = [
    "DecisionGrid",
    "DecisionRecipe",
    "EvaluationSettings",
    "ExportSettings",
    "GivenNetworks",
    "MeasureSettings",
    "StagePrecision",
]


FlaggedLabel = Literal["answer", "vote"]
Weight = Annotated[float, Field(gt=0, le=1, multiple_of=WEIGHT_UNIT)]


class GivenNetworks(Table):
    """Trained networks that the user brings; what is given is not trained.

    Attributes:
        classifier: File of the plain network's weights, of the recipe's `model`.
        robust: File of an adversarially trained network's weights.
        robust_model: The network that is trained adversarially, or that `robust` belongs to, and pruned; None: the
            recipe's `model`.
        start: What the adversarial training begins with: 'fresh' weights, or those of the 'plain' network.
        fresh: How other networks are trained adversarially from fresh weights: the wider baseline, the attacker's own.
            None: as the recipe's `adversarial`.
    """

    classifier: Path | None = None
    robust: Path | None = None
    robust_model: ModelTable | None = None
    start: Literal["fresh", "plain"] = "fresh"
    fresh: TrainingConfig | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.robust_model is not None and self.start == "plain":
            raise RecipeError("given.robust_model is another network, which cannot start from the plain one's weights")
        return self


class DecisionRecipe(Table):
    """Who answers, and what members see, where calibration does not choose otherwise.

    Attributes:
        answer: Who gives the label of an input that is not flagged: 'robust' the jury, 'mixed' classifier and jury
            together, 'accurate' the classifier.
        jury_share: Weight of the jury in the mix, of 1 in all.
        amplification: Power of the jury's mean probability in the mix, a multiple of 1/2, at most 16.
        juror_weight: Vote weight of every juror but the first, the pruned classifier, whose vote weighs 1.
        jurors_see: The image that jurors see.
        sensors_see: The image that sensors see; 'nothing' leaves them out of the file.
        purify: Which images are purified.
        opening: Jurors that every input is asked before anything is decided, the pruned classifier first; all where
            there are not as many. Where only what is suspicious is purified, an opening of `detection.min_accept` or
            more can accept an image as it came.
        await_vote: Whether, under 'robust', 'clean' waits until no vote that is left can change the label.
        signals: Evidence that costs no member: 'jury margin', 'classifier surprise', 'reconstruction error'.
        flagged_label: What a flagged input gets under 'mixed', unless it is rejected: the 'answer' of the whole jury
            with the classifier, or the jury's 'vote'. Under 'robust' these are the same; under 'accurate' it is the
            vote.
        label_cost: What a mix may lose against the jury, both attacked: labels, and images right or flagged.
        max_cost: The most that a clean image may cost, a multiple of the classifier's; what is dearer is taken only
            where all are. With it the search begins without a purifier. None: any, and costs are given in operations.
        cost_in: What it limits: the 'time' of the stages, measured once on one thread of this machine in batches of 64
            and stored in the work folder; or floating-point 'operations', the same on every machine.
    """

    answer: Answer = "mixed"
    jury_share: Annotated[float, Field(ge=0, le=1)] = 0.8
    amplification: Amplification = 3.0
    juror_weight: Weight = 1.0
    jurors_see: Sees = "raw"
    sensors_see: Sees | Literal["nothing"] = "purified"
    purify: Purify = "always"
    opening: Annotated[int, Field(ge=1)] = 2
    await_vote: bool = True
    signals: tuple[SignalName, ...] = ()
    flagged_label: FlaggedLabel = "answer"
    label_cost: Annotated[float, Field(ge=0, le=1)] = 0.01
    max_cost: Annotated[float, Field(gt=1)] | None = None
    cost_in: CostIn = "time"

    @property
    def contradiction(self) -> str | None:
        """Why no file can be wired so, while images are purified at all; None: one can."""
        if self.purify != "suspicious":
            return None
        if self.jurors_see == "purified":
            return (
                "decision.purify 'suspicious' asks the opening before anything is purified; set decision.jurors_see to "
                "'raw', or decision.purify to 'always'"
            )
        if "reconstruction error" in self.signals:
            return (
                "decision.purify 'suspicious' leaves images without the signal 'reconstruction error'; take it out of "
                "decision.signals, or set decision.purify to 'always'"
            )
        return None


class DecisionGrid(Table):
    """Which decisions are compared under attack before one is exported, and how hard they are attacked.

    First who answers: every answer with every weight of the jurors. Then, one after another, everything else that is
    listed: each value is tried in place of the recipe's own, and stays if it is better.

    Attributes:
        samples: Images of the fitting split; fewer where there are not as many.
        steps: Gradient steps of each descent.
        targets: Wrong labels that each is attacked towards.
        juror_weights: Vote weights of the jurors but the first; every other choice is tried with each.
        jury_shares: Of the mixes that are tried.
        amplifications: Of the mixes; every pair is one.
        opening: Jurors that every input is asked.
        jurors_see: The image that jurors see.
        sensors_see: The image that sensors see, or 'nothing'.
        purify: Which images are purified.
        signals: Evidence that costs no member.
        flagged_label: What a flagged input gets under 'mixed'.
    """

    samples: Annotated[int, Field(ge=10)] = 200
    steps: Annotated[int, Field(ge=1)] = 15
    targets: Annotated[int, Field(ge=1)] = 2
    juror_weights: Annotated[tuple[Weight, ...], Field(min_length=1)] = (0.25, 1.0)
    jury_shares: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)] = (0.6, 0.8, 0.9, 1.0)
    amplifications: Annotated[tuple[Amplification, ...], Field(min_length=1)] = (1.0, 3.0)
    opening: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 4)
    jurors_see: tuple[Sees, ...] = ("raw", "purified")
    sensors_see: tuple[Sees | Literal["nothing"], ...] = ("purified", "raw", "nothing")
    purify: tuple[Purify, ...] = ("always", "suspicious", "off")
    signals: tuple[tuple[SignalName, ...], ...] = ((), ("jury margin",), ("jury margin", "classifier surprise"))
    flagged_label: tuple[FlaggedLabel, ...] = ("vote",)


class EvaluationSettings(Table):
    """What the closing table of `harden` measures, and `evaluate` where its options say nothing else.

    Attributes:
        samples: Test images.
        budget: Work of the attacks, 'quick', 'standard' or 'full'.
        attacks: A preset, or names of attacks with commas between them; None: the preset of that budget.
        l2: l2 budget, pixels in [0, 1]; None: a third of the length of a change of eps in every pixel.
        pixels: l0 budget: positions (row, column) that may change.
        gradients: What the descents of attackers that know everything compute in, here and in the choice of the
            decision. "bfloat16" is faster where the processor has it, and finds about as much.
    """

    samples: Annotated[int, Field(ge=10)]
    budget: Literal["quick", "standard", "full"]
    attacks: str | None = None
    l2: Annotated[float, Field(gt=0)] | None = None
    pixels: Annotated[int, Field(ge=1)] = 3
    gradients: Gradients = "float32"


class StagePrecision(Table):
    """What the convolutions of each kind of stage compute in; norms, sums, softmax and the test stay as they are.

    Attributes:
        purifier: Of the purifier; "int8" is not for it.
        classifier: Of the classifier.
        members: Of every member.
    """

    purifier: PurifierPrecision = "float32"
    classifier: Precision = "float32"
    members: Precision = "float32"

    @property
    def reduced(self) -> bool:
        """Whether anything is to compute in less than float32."""
        return self != StagePrecision()


class ExportSettings(Table):
    """How the model file is written.

    Attributes:
        precision: What convolutions compute in, by stage; one word, "float16", is for all of them, "int8" and
            "float16_weights", which computes in float32, for classifier and members. Thresholds are calibrated on what
            is exported.
        max_flips: Largest share of validation images whose label or flag may differ from that in float32.
        tensorrt: Whether a network is refused that holds what TensorRT does not take.
        sparse_weights: "auto" stores a tensor of weights without its zeros where that halves it; "never" stores every
            tensor whole.
    """

    precision: StagePrecision = StagePrecision()
    max_flips: Annotated[float, Field(ge=0, le=1)] = 0.01
    tensorrt: bool = True
    sparse_weights: Literal["auto", "never"] = "auto"

    @field_validator("precision", mode="before")
    @classmethod
    def _one_word_for_all(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value not in get_args(Precision):
            raise ValueError(f"choose from {', '.join(get_args(Precision))}, for all stages or by stage")
        if value not in get_args(PurifierPrecision):
            return {"classifier": value, "members": value}
        return dict.fromkeys(StagePrecision.model_fields, value)


class MeasureSettings(Table):
    """What `prune` measures besides accuracy, on test images.

    Attributes:
        samples: Test images at the most.
        steps: PGD steps.
        restarts: Random starts, each run once for the cross-entropy and once for the margin; the worst counts.
        sharpness_radius: Largest relative change of scores, the same for every method.
        sharpness_samples: Validation images that sharpness and curvature are measured on.
        curvature_iterations: Products with the surrogate Hessian.
        transferability: Whether attacks are carried between the dense, the pruned and the INT8 network.
        sensitivity: Whether input gradients are measured and the attack's own sanity is checked.
        autoattack: Test images that AutoAttack's standard version is run on, on the shipped network; 0 = none. It takes
            hundreds of times as long as the attacks above.
    """

    samples: Annotated[int, Field(ge=2)] = 256
    steps: Annotated[int, Field(ge=1)] = 20
    restarts: Annotated[int, Field(ge=1)] = 2
    sharpness_radius: Annotated[float, Field(gt=0)] = 0.05
    sharpness_samples: Annotated[int, Field(ge=2)] = 128
    curvature_iterations: Annotated[int, Field(ge=1)] = 30
    transferability: bool = True
    sensitivity: bool = True
    autoattack: Annotated[int, Field(ge=0)] = 0
