"""What less precision changes in a finished file: verdicts, size and time on this CPU, everything in one run.

    python benchmarks/precision.py [MODEL] [--data FOLDER] [--samples N]

Stages of a file in float32 are written in other precisions, scales fitted to its fitting images, and its alarm boundary
is calibrated again on its calibration images. `s2ap-defend harden` does the same with what it has trained.
"""

import tempfile
from pathlib import Path

import click
from general_tools import answers
from onnx import ModelProto
from report import aligned, machine

from s2ap_defend.commands.options import ModelPath
from s2ap_defend.errors import DefendError
from s2ap_defend.model_file import ModelFile, open_model_file, write_model_file
from s2ap_defend.precision_record import Precision, PrecisionRecord
from s2ap_defend.stages import CLASSIFIER, PURIFIER, cut_stage, member_scope
from s2ap_export.commands.calibrate.recalibration import recalibrate, recalibrated_manifest
from s2ap_export.commands.evaluated_recipe import recipe_of
from s2ap_export.graph.compose import compose
from s2ap_export.hardening.reduced import milliseconds
from s2ap_export.hardening.stage_precision import in_precision
from s2ap_train.calibration.stage_engines import StageEngines
from s2ap_train.data import Splits

VARIANTS: dict[str, tuple[Precision, Precision, bool]] = {
    "float32": ("float32", "float32", True),
    "float16 weights": ("float16_weights", "float16_weights", True),
    "float16": ("float16", "float16", True),
    "int8": ("int8", "int8", True),
    "int8, classifier alone": ("int8", "float32", True),
    "int8, one-sided": ("int8", "int8", False),
    "int8, classifier alone, one-sided": ("int8", "float32", False),
}
"""By name: what the classifier and the members compute in, and whether TensorRT has to take it."""


def written(file: ModelFile, variant: str, splits: Splits, path: Path) -> None:
    """Write a file of the same networks in another precision, with an alarm boundary of its own."""
    of_classifier, of_members, tensorrt = VARIANTS[variant]

    def stage(scope: str, precision: Precision) -> ModelProto:
        return in_precision(cut_stage(file.proto, scope), precision, splits.fit.images, tensorrt=tensorrt)

    said = file.manifest
    sees, purify = [member.sees for member in said.members], said.decision.purify
    purifier, classifier = cut_stage(file.proto, PURIFIER), stage(CLASSIFIER, of_classifier)
    members = [stage(member_scope(i), of_members) for i in range(len(said.members))]
    engines = StageEngines(purifier, classifier, members, sees=sees, purify=purify)
    found = engines.answers(splits.calibration.images, splits.calibration.labels)
    new = recalibrate(said.test, said.to_test(), found, alpha=said.test.alpha, on=said.test.calibration.on)
    graph = compose(purifier, classifier, members, new.test, sees=sees, purify=purify)
    manifest = recalibrated_manifest(said, new.tables, said.decision).model_copy(
        update={
            "members": tuple(member.model_copy(update={"precision": of_members}) for member in said.members),
            "precision": None
            if {of_classifier, of_members} == {"float32"}
            else PrecisionRecord(classifier=of_classifier, comparison=None),
        }
    )
    write_model_file(graph, manifest, path)


@click.command()
@click.argument("model", type=ModelPath(), default="fashion")
@click.option("--data", type=click.Path(path_type=Path), help="Where the data lie that the file was made with.")
@click.option("--samples", type=click.IntRange(1), default=1000, show_default=True, help="Test images.")
def main(model: Path, data: Path | None, samples: int) -> None:
    """Write the file in every precision and compare it with that in float32."""
    rows = [
        ("precision", "labels", "flags", "clean right", "flagged", "kB", "time, 64 at once", "time, one"),
        ("---",) * 8,
    ]
    try:
        file = open_model_file(model)
        splits = recipe_of(model, file.manifest, data=data).load_data()
        test = splits.test.subset(slice(0, samples))
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{i}.onnx" for i in range(len(VARIANTS))]
            for name, path in zip(VARIANTS, paths, strict=True):
                written(file, name, splits, path)
            many, one = milliseconds(paths, test.images, rounds=41), milliseconds(paths, test.images[:1], rounds=401)
            before = answers(paths[0], test.images)
            for i, (name, path) in enumerate(zip(VARIANTS, paths, strict=True)):
                after = answers(path, test.images)
                flips = [int((after[key] != before[key]).sum()) for key in ("label", "adversarial")]
                right = (after["label"] == test.labels).mean()
                times = [f"x{of[i] / of[0]:.2f}" for of in (many, one)]
                shown = [
                    f"{right:.1%}",
                    f"{after['adversarial'].mean():.1%}",
                    f"{path.stat().st_size / 1e3:.0f}",
                    *times,
                ]
                rows.append((name, *map(str, flips), *shown))
    except DefendError as error:
        raise click.ClickException(str(error)) from error
    print("\n".join(aligned(rows)))
    print(f"\nfloat32: {many[0]:.3f} ms an image of 64, {one[0]:.3f} ms alone, one thread, {machine()}")


if __name__ == "__main__":
    main()
