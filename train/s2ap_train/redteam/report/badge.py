"""The figures that a model file carries of itself, and those of a badge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from s2ap_defend.errors import ModelFileError
from s2ap_defend.golden_record import read_golden
from s2ap_defend.manifest import Measurement
from s2ap_defend.model_file import open_model_file, write_model_file
from s2ap_train.redteam.report.tables import WORST_CASE
from s2ap_train.redteam.report.verdict import verdict
from s2ap_train.redteam.report.words import headline, interval, misleads, percent
from s2ap_train.redteam.results import Evaluation
from s2ap_train.statistics.figures import AttackFigures, CleanFigures

__all__ = ["badge_of", "measurements", "write_measured"]

_COLOURS = {
    "measured": "blue",
    "not-above": "yellow",
    "below": "orange",
    "doubtful": "orange",
    "incomplete": "lightgrey",
    "masked": "red",
}
_UNFIT = {"masked": "no measure: gradients are masked", "doubtful": "doubtful", "incomplete": "incomplete"}
"""What a badge says instead of a figure."""


def measurements(evaluation: Evaluation) -> tuple[Measurement, ...]:
    """Rows for the manifest: clean images, every l_inf attack that misleads, and the worst case per image.

    What is no measure is left out: all attacks where gradients are masked; the worst case where a sanity check failed,
    or where no attack that knows everything was run on all images.

    A row has a figure of the bare classifier, so attacks on members and test alone have none of their own: they count
    in the worst case. How many images are flagged, and how many members asked, is in the worst case that of the attack
    that won most often, the later one of several.
    """
    options, clean = evaluation.configuration, evaluation.clean
    attacks = [] if evaluation.masked else [row for row in evaluation.attacks if misleads(row)]

    def measured(
        name: str, samples: int, bare: float, robust: float, label: float, figures: AttackFigures | CleanFigures
    ) -> Measurement:
        return Measurement(
            attack=name,
            eps=0.0 if name == "clean" else options.eps,
            samples=samples,
            bare_accuracy=bare,
            robust_accuracy=robust,
            label_accuracy=label,
            flagged=figures.flagged,
            members_used=figures.members_used,
        )

    kept = 1.0 - clean.attack_success
    rows = [measured("clean", options.samples, evaluation.bare_clean.accuracy, kept, clean.accuracy, clean)]
    for row in attacks:
        if row.bare is not None:
            one, kept = row.defended, 1.0 - row.defended.attack_success
            rows.append(measured(row.name, row.samples, 1.0 - row.bare.attack_success, kept, one.label_accuracy, one))
    whole = [row for row in attacks if row.samples == options.samples]
    failed = any(check.passed is False for check in evaluation.checks)
    if not failed and any(row.knows == "everything" for row in whole):
        worst, bare = evaluation.worst_case, evaluation.bare_worst_case.label_accuracy
        strongest = max(reversed(whole), key=lambda row: row.defended.attack_success).defended
        figures = (worst.robust_accuracy, worst.label_accuracy, strongest)
        rows.append(measured(WORST_CASE, options.samples, bare, *figures))
    return tuple(rows)


def badge_of(evaluation: Evaluation) -> dict[str, Any]:
    """Figures for a badge, as JSON values.

    `shields` is what an endpoint of shields.io answers; it stands apart because that schema refuses other keys. Its
    message never gives a figure that a failed check has spoiled.
    """
    options, worst, said = evaluation.configuration, evaluation.worst_case, verdict(evaluation)
    figure = (
        f"{percent(worst.label_accuracy)} right ({interval(*worst.label_accuracy_interval)}), "
        f"{percent(worst.robust_accuracy)} right or flagged ({interval(*worst.robust_accuracy_interval)})"
    )
    return {
        "shields": {
            "schemaVersion": 1,
            "label": f"adaptive attacks, l_inf {options.eps:g}",
            "message": _UNFIT.get(said.level, figure),
            "color": _COLOURS[said.level],
        },
        "verdict": said.level,
        "headline": headline(evaluation),
        "model": options.model,
        "weights_sha256": options.weights_sha256,
        "samples": options.samples,
        "eps": options.eps,
        "attacks": [row.name for row in evaluation.attacks],
        "measured": [row.model_dump() for row in measurements(evaluation)],
    }


def write_measured(model: Path, output: Path, evaluation: Evaluation) -> None:
    """Write a copy of a model file that carries what was measured of it; the graph is the same.

    Args:
        model: The file that was evaluated.
        output: The file to write, another one.
        evaluation: Of that file.

    Raises:
        ModelFileError: If `model` cannot be read or is another file than the one evaluated, if `output` is the same
            file or cannot be written, or if the verdict is 'masked', 'doubtful' or 'incomplete': a manifest has no
            place to say so.
    """
    said = verdict(evaluation)
    if said.level in _UNFIT:
        raise ModelFileError(f"the figures of {model} do not go into a file. {said.title}: {said.text}")
    if output.exists() and output.samefile(model):
        raise ModelFileError(f"{output} is the file that was evaluated and stays as it is; name another file to write")
    file = open_model_file(model)
    found, expected = file.manifest.weights_sha256, evaluation.configuration.weights_sha256
    if found != expected:
        raise ModelFileError(
            f"{model} has weights with SHA-256 {found[:12]}..., the evaluation is of {expected[:12]}...; evaluate this "
            "file again"
        )
    measured = file.manifest.model_copy(update={"measured": measurements(evaluation)})
    apart = bool(file.data_locations) or None
    write_model_file(file.proto, measured, output, external_data=apart, golden=read_golden(file.proto))
