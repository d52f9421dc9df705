"""The detector alone: how well its evidence tells attacked images from clean ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from s2ap_defend.model_file import ModelFile
from s2ap_defend.sequential import SequentialTest, run_sequential_test
from s2ap_defend.types import Bool, Float32, Float64
from s2ap_train.calibration import Answers, alarm_statistic
from s2ap_train.calibration.stage_engines import StageEngines
from s2ap_train.data import ImageSet
from s2ap_train.redteam.results import DetectionFigures, DetectionRow
from s2ap_train.statistics.detection import RocArea, Share, detected_at, roc_area, roc_points

__all__ = ["FEWEST", "detection_figures", "measure_detection"]

FEWEST = 10
"""Turned images, or clean ones, below which an area has no interval: DeLong's variance is estimated from their spread,
and of a few it is 0 or nearly so by chance."""


def measure_detection(
    file: ModelFile, data: ImageSet, flagged: Bool, attacked: Mapping[str, Float32]
) -> DetectionFigures:
    """Figures of a file's detector, every member asked about every image on ONNX Runtime.

    Args:
        file: The opened model file.
        data: Clean images and labels.
        flagged: Clean images that the served file flags [N].
        attacked: Images of each attack [N, C, H, W], like `data`'s; the clean ones where it did not run.

    Raises:
        EngineError: If the stages cannot be run.
        ModelFileError: If a stage cannot be loaded.
    """
    stages = StageEngines.from_file(file)
    test = file.manifest.to_test()
    answers = {name: stages.answers(images, data.labels) for name, images in attacked.items()}
    return detection_figures(test, flagged, stages.answers(data.images, data.labels), answers)


def detection_figures(
    test: SequentialTest, flagged: Bool, clean: Answers, attacked: Mapping[str, Answers]
) -> DetectionFigures:
    """Detection of every attack at 1 % and 5 % false alarms, whatever the alarm boundary of the file.

    The statistic is `alarm_statistic`: the largest evidence up to the stop of the test, so that a boundary at its value
    flags exactly what lies above. Negatives are all clean images, also those that are answered wrongly. Positives
    are images whose first answer was right and that the attack turned: whether they were flagged then plays no part,
    so images on which an attack that knows the test gave up are there, too. Thresholds are those of these very clean
    images; with fewer than 100 none lies above that of 1 %. The ends of an area's
    interval are nan where there are fewer than `FEWEST` positives or negatives.

    Args:
        test: The file's test.
        flagged: Clean images that the file flags [N].
        clean: What classifier and members say of the clean images.
        attacked: The same of each attack's images, in the same order.
    """
    clean = _as_served(test, clean)
    attacked = {name: _as_served(test, answers) for name, answers in attacked.items()}
    negative = alarm_statistic(test, clean)
    rows = []
    for name, answers in attacked.items():
        turned = clean.right & ~answers.right
        if not turned.any():
            continue
        positive = alarm_statistic(test, answers.keep(turned))
        rows.append(
            DetectionRow(
                attack=name,
                area=_area(negative, positive),
                at_1_percent=detected_at(negative, positive, 0.01),
                at_5_percent=detected_at(negative, positive, 0.05),
                roc=roc_points(negative, positive),
            )
        )
    return DetectionFigures(
        rows=tuple(rows),
        false_alarms=Share.of(flagged),
        false_alarms_right=Share.of(flagged[clean.right]),
        false_alarms_wrong=Share.of(flagged[~clean.right]),
    )


def _as_served(test: SequentialTest, answers: Answers) -> Answers:
    """Measured against what the file answers first: of the raw image where the opening accepts it as it came."""
    return replace(answers, first=run_sequential_test(test, answers.said).first_answer)


def _area(negative: Float64, positive: Float64) -> RocArea:
    area = roc_area(negative, positive)
    return area if min(len(negative), len(positive)) >= FEWEST else replace(area, low=math.nan, high=math.nan)
