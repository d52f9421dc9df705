"""What an evaluation found: everything that the reports print and the JSON file holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from s2ap_defend.sequential import Answer
from s2ap_defend.types import Float32
from s2ap_train.redteam.attacks.attack import Goal, Knowledge
from s2ap_train.redteam.rows import AblationRow, Comparison, Measure, PartCost, Requirement, effect_of
from s2ap_train.statistics.detection import RocArea, Share
from s2ap_train.statistics.figures import AttackFigures, CleanFigures, WorstCase
from s2ap_train.statistics.paired import PairedDifference

__all__ = [
    "AttackRow",
    "Check",
    "Configuration",
    "CurvePoint",
    "Curves",
    "DetectionFigures",
    "DetectionRow",
    "Evaluation",
    "GalleryItem",
]


@dataclass(frozen=True)
class AttackRow:
    """One attack and what it reached.

    Attributes:
        name: Of the attack.
        goal: As in `RedTeamAttack`, like the next four.
        knows: See there.
        norm: See there.
        assumes: See there.
        source: See there.
        samples: Images that it was run on; fewer than those of the evaluation where time ran out.
        reached: Share of its images where its own goal was reached; for 'slow down' that all members were asked.
        reached_interval: Its 95 % Clopper-Pearson interval.
        defended: Figures of the file on its images.
        bare: Figures of the bare classifier under the same attack, made on it; None: there is nothing to attack there.
    """

    name: str
    goal: Goal
    knows: Knowledge
    norm: str | None
    assumes: str
    source: str
    samples: int
    reached: float
    reached_interval: tuple[float, float]
    defended: AttackFigures
    bare: AttackFigures | None


@dataclass(frozen=True)
class DetectionRow:
    """How well the evidence tells one attack's images from clean ones, whatever the threshold of the file.

    Attributes:
        attack: Its name.
        area: Area under the ROC curve.
        at_1_percent: Attacked images above the threshold that 1 % of the clean ones are above.
        at_5_percent: The same for 5 %.
        roc: `false_alarm_rate` and `detection_rate` of the curve's points.
    """

    attack: str
    area: RocArea
    at_1_percent: Share
    at_5_percent: Share
    roc: Mapping[str, list[float]]


@dataclass(frozen=True)
class DetectionFigures:
    """The detector alone: attacked images are those whose first answer is wrong and was right before the attack.

    The first answer is the one that evidence is measured against, and that counts where nothing is flagged early on.

    Attributes:
        rows: One for each attack with such images.
        false_alarms: Clean images flagged, of all.
        false_alarms_right: Of those whose first answer is right.
        false_alarms_wrong: Of those whose first answer is wrong: rightly flagged mistakes.
    """

    rows: tuple[DetectionRow, ...]
    false_alarms: Share
    false_alarms_right: Share
    false_alarms_wrong: Share


@dataclass(frozen=True)
class CurvePoint:
    """Share of images that no attack broke up to a point of a curve.

    Attributes:
        at: eps in pixels, steps, or restarts.
        robust_accuracy: Share not broken.
        interval: Its 95 % Clopper-Pearson interval.
        label_accuracy: Share whose final label was right, flagged or not.
    """

    at: float
    robust_accuracy: float
    interval: tuple[float, float]
    label_accuracy: float


@dataclass(frozen=True)
class Curves:
    """How the figures move with the attacker's means; on `samples` images, the first of the evaluation."""

    samples: int
    eps: tuple[CurvePoint, ...]
    steps: tuple[CurvePoint, ...]
    restarts: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class Check:
    """One sanity check.

    Attributes:
        name: Short name.
        passed: Whether the symptom is absent; None: it could not be judged.
        found: The measured values that decided.
        meaning: What passing says, what failing means, or why it could not be judged.
        masking: Whether failing says that gradients are masked, so that robust accuracy is no measure.
    """

    name: str
    passed: bool | None
    found: Mapping[str, float]
    meaning: str
    masking: bool = False


@dataclass(frozen=True)
class GalleryItem:
    """One image before and after an attack, and after the purifier.

    Attributes:
        attack: Which one.
        original: float32 [C, H, W] in [0, 1], as the others.
        attacked: The attacked image.
        purified: The attacked image behind the purifier.
        label: True label, by name.
        verdict: What the file answers, in words.
        won: Whether the attacker won.
    """

    attack: str
    original: Float32
    attacked: Float32
    purified: Float32
    label: str
    verdict: str
    won: bool


@dataclass(frozen=True)
class Configuration:
    """What was evaluated, how, and where: enough to do it again.

    Attributes:
        command: The command line, or the call.
        model: Name of the file.
        weights_sha256: Which file it was.
        answer: Who gives the label of an input that is not flagged.
        decision: The file's decision in words.
        weaknesses: What of the file is weaker than it was meant to be, a sentence each.
        recipe: Recipe of the data.
        data: The data in words.
        preset: 'quick', 'standard', 'full', or the attacks by name.
        budget: Fields of the `AdaptiveBudget`.
        samples: Images.
        images_sha256: Of the images' and labels' bytes (`ImageSet.sha256`).
        first: Number of the first one among the test images, from 0.
        eps: l_inf budget, pixels in [0, 1].
        l2: l2 budget.
        pixels: l0 budget.
        seed: Of all attacks.
        versions: Of the libraries that took part.
        machine: In words.
    """

    command: str
    model: str
    weights_sha256: str
    answer: Answer
    decision: str
    recipe: str
    data: str
    preset: str
    budget: Mapping[str, Any]
    samples: int
    images_sha256: str
    eps: float
    l2: float
    pixels: int
    seed: int
    versions: Mapping[str, str]
    machine: str
    weaknesses: tuple[str, ...] = ()
    first: int = 0


@dataclass(frozen=True)
class Evaluation:
    """Everything that was found.

    Attributes:
        configuration: What was run.
        seconds: Time of all attacks together, those of earlier, interrupted runs included.
        clean: The file on clean images.
        bare_clean: The bare classifier on them.
        attacks: In the order of the catalogue.
        not_run: Attacks that were asked for and not run, or not on all images, and why.
        worst_case: The file per image under the clean input and all l_inf attacks, whatever they wanted, and what was
            found for other rows of `ablation`: the headline.
        worst_case_by_norm: The same for 'l2' and 'l0', where such attacks ran.
        bare_worst_case: The bare classifier under its own attacks and what was found for other rows.
        rejecting_label_accuracy: Images answered rightly in the worst case by a file that rejects what it flags.
        detection: The detector alone; None: it was not measured.
        members_used: Members asked, an integer an image: of 'clean' and of each attack.
        curves: None: not measured.
        checks: Sanity checks of the attack.
        ablation: Rows of the table, least defended first.
        comparisons: The file against every baseline that was measured, in every figure.
        must_hold: What must hold of a file, line by line, with what was found.
        costs: What each part of the chain adds or costs.
        gallery: Images for the report; not part of the JSON.
    """

    configuration: Configuration
    seconds: float
    clean: CleanFigures
    bare_clean: CleanFigures
    attacks: tuple[AttackRow, ...]
    not_run: Mapping[str, str]
    worst_case: WorstCase
    worst_case_by_norm: Mapping[str, WorstCase]
    bare_worst_case: WorstCase
    rejecting_label_accuracy: float
    detection: DetectionFigures | None
    members_used: Mapping[str, tuple[int, ...]]
    curves: Curves | None
    checks: tuple[Check, ...]
    ablation: tuple[AblationRow, ...]
    comparisons: tuple[Comparison, ...]
    must_hold: tuple[Requirement, ...]
    costs: tuple[PartCost, ...]
    gallery: tuple[GalleryItem, ...] = ()

    def row(self, name: str) -> AblationRow | None:
        """The row of the ablation with that name; None: it was not measured."""
        return next((row for row in self.ablation if row.name == name), None)

    def against(self, baseline: str, measure: Measure) -> PairedDifference | None:
        """The file minus a baseline; None: it was not measured."""
        return effect_of(self.comparisons, baseline, measure)

    @property
    def masked(self) -> bool:
        """Whether a check failed that says that gradients are masked: then robust accuracy is no measure."""
        return any(check.masking and check.passed is False for check in self.checks)
