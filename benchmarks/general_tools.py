"""What tools that know nothing of a defence do to the verdicts of a finished file, in plain ONNX Runtime.

    python benchmarks/general_tools.py [MODEL] [--data FOLDER] [--samples N]

Each tool writes a changed copy, which is asked about test images and compared with the file as it was. onnxslim,
onnxsim and onnxconverter-common are tried where they are installed.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from report import aligned

from s2ap_defend.commands.options import ModelPath
from s2ap_defend.errors import DefendError
from s2ap_defend.model_file import open_model_file
from s2ap_defend.types import Float32
from s2ap_export.commands.evaluated_recipe import recipe_of

Answers = dict[str, np.ndarray]
Tool = Callable[[Path, Path, Float32], None]
"""(the file, where to write the changed one, clean images for those that are calibrated)."""


def answers(path: Path, images: Float32) -> Answers:
    """All outputs of a file in plain ONNX Runtime, which checks nothing."""
    session = ort.InferenceSession(str(path), _quiet(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images}), strict=True))


def optimised(level: ort.GraphOptimizationLevel) -> Tool:
    """ONNX Runtime's offline optimiser of a level."""

    def write(model: Path, path: Path, _: Float32) -> None:
        options = _quiet()
        options.graph_optimization_level, options.optimized_model_filepath = level, str(path)
        ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    return write


def slimmed(model: Path, path: Path, _: Float32) -> None:
    """What onnxslim leaves."""
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(model)), path)


def simplified(model: Path, path: Path, _: Float32) -> None:
    """What onnxsim leaves."""
    import onnxsim

    onnx.save(onnxsim.simplify(onnx.load(model))[0], path)


def in_float16(model: Path, path: Path, _: Float32) -> None:
    """Everything but inputs and outputs in float16."""
    onnx.save(convert_float_to_float16(onnx.load(model), keep_io_types=True), path)


def in_float16_common(model: Path, path: Path, _: Float32) -> None:
    """The same by onnxconverter-common."""
    from onnxconverter_common import float16

    onnx.save(float16.convert_float_to_float16(onnx.load(model), keep_io_types=True), path)


def quantised_dynamically(model: Path, path: Path, _: Float32) -> None:
    """Weights in 8 bits, values by their range in each batch."""
    quantize_dynamic(model, path)


def quantised(model: Path, path: Path, images: Float32) -> None:
    """Convolutions in 8 bits, calibrated on images."""
    quantize_static(str(model), str(path), _Images(iter(images[:_CALIBRATED])), op_types_to_quantize=["Conv"])


class _Images(CalibrationDataReader):
    """Images one by one, as the quantiser wants them."""

    def __init__(self, images: Iterator[Float32]) -> None:
        self._images = images

    def get_next(self) -> dict[str, Float32] | None:
        image = next(self._images, None)
        return None if image is None else {"image": image[None]}


_CALIBRATED = 64
SAME: dict[str, Tool] = {
    "offline optimiser, basic": optimised(ort.GraphOptimizationLevel.ORT_ENABLE_BASIC),
    "offline optimiser, extended": optimised(ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED),
    "onnxslim": slimmed,
    "onnxsim": simplified,
}
CHANGED: dict[str, Tool] = {
    "float16": in_float16,
    "dynamic quantisation": quantised_dynamically,
    "static quantisation": quantised,
}
BROKEN: dict[str, Tool] = {"float16, onnxconverter-common": in_float16_common}


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
        recipe = recipe_of(model, manifest, data=data)
        splits = recipe.load_data()
        images = splits.test.images[:samples]
    except DefendError as error:
        raise click.ClickException(str(error)) from error
    before = answers(model, images)
    rows = [("tool", "labels", "flags", "members asked", "largest change of a probability"), ("---",) * 5]
    with tempfile.TemporaryDirectory() as folder:
        for name, tool in (SAME | CHANGED | BROKEN).items():
            path = Path(folder) / "changed.onnx"
            try:
                tool(model, path, splits.fit.images)
                after = answers(path, images)
            except ModuleNotFoundError as error:
                rows.append((name, f"{error.name} is not installed", "", "", ""))
                continue
            except (Fail, InvalidGraph):
                rows.append((name, "ONNX Runtime loads it no more", "", "", ""))
                continue
            counts = [int((after[key] != before[key]).sum()) for key in ("label", "adversarial", "members_used")]
            largest = np.abs(after["probabilities"] - before["probabilities"]).max()
            rows.append((name, *map(str, counts), f"{largest:.2g}"))
    print("\n".join(aligned(rows)))


if __name__ == "__main__":
    main()
