"""What tools that know nothing of a defence do to the verdicts of a finished file, in plain ONNX Runtime.

    python benchmarks/general_tools.py [MODEL] [--data FOLDER] [--samples N]

Each tool writes a changed copy, which is asked about test images and compared with the file as it was.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16
from report import aligned

from s2ap_defend.commands.options import ModelPath
from s2ap_defend.errors import DefendError
from s2ap_defend.model_file import open_model_file
from s2ap_defend.types import Float32
from s2ap_export.commands.evaluated_recipe import recipe_of

Answers = dict[str, np.ndarray]
Tool = Callable[[Path, Path], None]
"""(the file, where to write the changed one)."""


def answers(path: Path, images: Float32) -> Answers:
    """All outputs of a file in plain ONNX Runtime, which checks nothing."""
    session = ort.InferenceSession(str(path), _quiet(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images}), strict=True))


def optimised(level: ort.GraphOptimizationLevel) -> Tool:
    """ONNX Runtime's offline optimiser of a level."""

    def write(model: Path, path: Path) -> None:
        options = _quiet()
        options.graph_optimization_level, options.optimized_model_filepath = level, str(path)
        ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    return write


def in_float16(model: Path, path: Path) -> None:
    """Everything but inputs and outputs in float16."""
    onnx.save(convert_float_to_float16(onnx.load(model), keep_io_types=True), path)


SAME: dict[str, Tool] = {
    "offline optimiser, basic": optimised(ort.GraphOptimizationLevel.ORT_ENABLE_BASIC),
    "offline optimiser, extended": optimised(ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED),
}
CHANGED: dict[str, Tool] = {"float16": in_float16, "dynamic quantisation": quantize_dynamic}


def _quiet() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return options


@click.command()
@click.argument("model", type=ModelPath(), default="fashion")
@click.option("--data", type=click.Path(path_type=Path), help="Where the data lie that the file was made with.")
@click.option("--samples", type=click.IntRange(1), default=1000, show_default=True, help="Test images.")
def main(model: Path, data: Path | None, samples: int) -> None:
    """Change the file with every tool and count what its verdicts lose."""
    try:
        manifest = open_model_file(model).manifest
        recipe = recipe_of(model, manifest, None, data, (), model.with_name(f"{model.name}.training"))
        images = recipe.load_data().test.images[:samples]
    except DefendError as error:
        raise click.ClickException(str(error)) from error
    before = answers(model, images)
    rows = [("tool", "labels", "flags", "members asked", "largest change of a probability"), ("---",) * 5]
    with tempfile.TemporaryDirectory() as folder:
        for name, tool in (SAME | CHANGED).items():
            path = Path(folder) / "changed.onnx"
            tool(model, path)
            after = answers(path, images)
            counts = [int((after[key] != before[key]).sum()) for key in ("label", "adversarial", "members_used")]
            largest = np.abs(after["probabilities"] - before["probabilities"]).max()
            rows.append((name, *map(str, counts), f"{largest:.2g}"))
    print("\n".join(aligned(rows)))


if __name__ == "__main__":
    main()
