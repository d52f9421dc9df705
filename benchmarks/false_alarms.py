"""Whether files keep the false-alarm rate that they promise, on all test images of their recipe.

    python benchmarks/false_alarms.py MODEL ... [--data FOLDER] [--alpha A] [--json FILE]

For every alpha each file gets the alarm boundary that `calibrate` would give it, from the calibration images of its
recipe, and is asked about every test image without attack. Counted are those that are answered right, as in the
promise: on average over calibration samples at most alpha of them are flagged, and for this sample at most the bound,
with 95 % confidence.

Written down before measuring: the rate on 10,000 images lies below the bound for every alpha, and around alpha.
"""

from pathlib import Path
from typing import Any

import click
from report import aligned, as_text, machine

from s2ap_defend.commands.options import ModelPath
from s2ap_defend.errors import DefendError
from s2ap_defend.files import check_writable, replace_file
from s2ap_defend.model_file import ModelFile, open_model_file
from s2ap_defend.sequential import run_sequential_test
from s2ap_export.commands.calibrate.recalibration import recalibrate
from s2ap_export.commands.evaluated_recipe import recipe_of
from s2ap_train.calibration import Answers
from s2ap_train.calibration.stage_engines import StageEngines
from s2ap_train.data import ImageSet
from s2ap_train.statistics.figures import clopper_pearson

ALPHAS = (0.01, 0.02, 0.05)


@click.command()
@click.argument("models", nargs=-1, required=True, type=ModelPath())
@click.option("--data", type=click.Path(path_type=Path), help="Where the data lie that the files were made with.")
@click.option("--alpha", "alphas", multiple=True, type=float, default=ALPHAS, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the figures here.")
def main(models: tuple[Path, ...], data: Path | None, alphas: tuple[float, ...], output: Path | None) -> None:
    """Calibrate every file for every alpha, count its false alarms, print the table."""
    try:
        if output is not None:
            check_writable(output)
        found = [row for model in models for row in false_alarms(model, data, alphas)]
    except DefendError as error:
        raise click.ClickException(str(error)) from error
    document = {"command": "benchmarks/false_alarms.py", "machine": machine(), "rows": found}
    print_table(document)
    if output is not None:
        replace_file(output, as_text(document).encode())


def false_alarms(model: Path, data: Path | None, alphas: tuple[float, ...]) -> list[dict[str, Any]]:
    """What one file flags of the test images of its recipe, for every alpha, as JSON values.

    Raises:
        DefendError: If the file or its data cannot be read, or there are too few calibration images for an alpha.
    """
    file = open_model_file(model)
    manifest = file.manifest
    recipe = recipe_of(model, manifest, data=data)
    splits = recipe.load_data()
    engines = StageEngines.from_file(file)
    calibration, test = (_answers(engines, part) for part in (splits.calibration, splits.test))
    return [_row(file, calibration, test, alpha) for alpha in alphas]


def _answers(engines: StageEngines, part: ImageSet) -> Answers:
    return engines.answers(part.images, part.labels)


def _row(file: ModelFile, calibration: Answers, test: Answers, alpha: float) -> dict[str, Any]:
    manifest = file.manifest
    result = recalibrate(manifest.test, manifest.to_test(), calibration, alpha=alpha, on="correct")
    answers = test.measured_by(result.test)
    flagged = run_sequential_test(result.test, answers.said).adversarial
    alarms, right = int((flagged & answers.right).sum()), int(answers.right.sum())
    bound = result.record.false_alarm_bound
    return {
        "model": manifest.provenance.recipe,
        "seed": manifest.provenance.seed,
        "alpha": alpha,
        "calibrated_on": result.record.samples,
        "expected": result.record.expected_false_alarm_rate,
        "bound": bound,
        "test_images": len(test),
        "right": right,
        "alarms": alarms,
        "rate": alarms / right,
        "interval": list(clopper_pearson(alarms, right)),
        "flagged_of_all": float(flagged.mean()),
        "holds": bound is not None and alarms / right <= bound,
    }


def print_table(document: dict[str, Any]) -> None:
    """The table in Markdown."""
    header = ("file", "alpha", "calibrated on", "expected", "at most (95 %)", "false alarms", "95 %", "of", "holds")
    rows = []
    for row in document["rows"]:
        low, high = row["interval"]
        rows.append(
            (
                f"{row['model']}, seed {row['seed']}",
                f"{100 * row['alpha']:g}",
                str(row["calibrated_on"]),
                f"{100 * row['expected']:.2f}",
                f"{100 * row['bound']:.2f}",
                f"{100 * row['rate']:.2f}",
                f"{100 * low:.2f} to {100 * high:.2f}",
                f"{row['right']:,}",
                "yes" if row["holds"] else "no",
            )
        )
    print("\n".join(aligned([header, ("---",) * len(header), *rows])))


if __name__ == "__main__":
    main()
