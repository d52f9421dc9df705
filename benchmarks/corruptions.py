"""What common corruptions leave of a file without any attacker, and when its drift alarm notices them.

    python benchmarks/corruptions.py MODEL [--data FOLDER] [--samples N] [--json FILE]

Every corruption of `evaluate` in every severity is applied to the first test images of the file's recipe. Counted are
right labels of the file and of the classifier inside it, and flags; a drift monitor of its own gets the verdicts one
after the other until its alarm comes.

Written down before measuring: within the eps that the file was trained for labels stay; beyond it the flag does not
replace them, and the alarm of drift comes within a hundred images.
"""

from pathlib import Path
from typing import Any

import click
import numpy as np
from report import aligned, as_text, machine

from s2ap_defend import DefendedClassifier, DriftMonitor
from s2ap_defend.commands.options import ModelPath
from s2ap_defend.errors import DefendError
from s2ap_defend.files import check_writable, replace_file
from s2ap_export.commands.evaluated_recipe import recipe_of
from s2ap_train.data import ImageSet
from s2ap_train.redteam.attacks.corruptions import CORRUPTIONS, SEVERITIES, corrupted


@click.command()
@click.argument("model", type=ModelPath())
@click.option("--data", type=click.Path(path_type=Path), help="Where the data lie that the file was made with.")
@click.option("--samples", type=click.IntRange(2), default=1000, show_default=True, help="Test images.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the figures here.")
def main(model: Path, data: Path | None, samples: int, output: Path | None) -> None:
    """Corrupt test images, ask the file, print the table."""
    try:
        if output is not None:
            check_writable(output)
        classifier = DefendedClassifier.load(model, device="cpu")
        manifest = classifier.manifest
        recipe = recipe_of(model, manifest, data=data)
        images = recipe.load_data().test.subset(slice(0, samples))
        rows = corruptions(classifier, images, recipe.seed)
    except DefendError as error:
        raise click.ClickException(str(error)) from error
    document = {
        "command": "benchmarks/corruptions.py",
        "machine": machine(),
        "recipe": manifest.provenance.recipe,
        "seed": manifest.provenance.seed,
        "weights_sha256": manifest.weights_sha256,
        "samples": len(images),
        "rows": rows,
    }
    print_table(document)
    if output is not None:
        replace_file(output, as_text(document).encode())


def corruptions(classifier: DefendedClassifier, clean: ImageSet, seed: int) -> list[dict[str, Any]]:
    """The images as they are, then under every corruption in every severity, as JSON values."""
    unchanged = _row(classifier, "none", 0, clean)
    return [unchanged] + [
        _row(
            classifier,
            name,
            severity,
            ImageSet(corrupted(name, clean.images, severity=severity, seed=seed), clean.labels),
        )
        for name in CORRUPTIONS
        for severity in SEVERITIES
    ]


def _row(classifier: DefendedClassifier, name: str, severity: int, data: ImageSet) -> dict[str, Any]:
    verdicts = classifier(data.images)
    monitor = DriftMonitor(classifier.manifest)
    noticed = (i + 1 for i in range(len(data)) if monitor.update(verdicts.rows(slice(i, i + 1))).drifted)
    return {
        "corruption": name,
        "severity": severity,
        "classifier_right": float(np.mean(verdicts.base_label == data.labels)),
        "label_right": float(np.mean(verdicts.label == data.labels)),
        "flagged": float(np.mean(verdicts.adversarial)),
        "right_or_flagged": float(np.mean((verdicts.label == data.labels) | verdicts.adversarial)),
        "drift_after": next(noticed, None),
    }


def print_table(document: dict[str, Any]) -> None:
    """The table in Markdown."""
    header = ("%", "severity", "classifier right", "label right", "flagged", "right or flagged", "drift alarm after")
    shares = ("classifier_right", "label_right", "flagged", "right_or_flagged")
    rows = [
        (
            row["corruption"],
            str(row["severity"]),
            *(f"{100 * row[share]:.1f}" for share in shares),
            "-" if row["drift_after"] is None else f"{row['drift_after']} images",
        )
        for row in document["rows"]
    ]
    print("\n".join(aligned([header, ("---",) * len(header), *rows])))


if __name__ == "__main__":
    main()
