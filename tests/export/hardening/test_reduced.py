"""A file in less than float32 is compared with the same in float32, and refused where too many verdicts change."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from s2ap_defend import DefendedClassifier, RecipeError
from s2ap_defend.model_file import all_graphs, open_model_file, write_model_file
from s2ap_defend.precision_record import PrecisionFigures, PrecisionRecord
from s2ap_export.hardening import reduced
from s2ap_export.hardening.reduced import MEASURED_FILE, check_flips, compare_precision, with_comparison
from s2ap_train.data import ImageSet
from s2ap_train.recipe import load_recipe
from s2ap_train.recipe.tables import ExportSettings, StagePrecision

ASKED = {"eps": 0.1, "seed": 0, "max_flips": 0.0}
IMAGES = np.random.default_rng(3).random((40, 1, 8, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def clean(tiny_model_path: Path) -> ImageSet:
    """Images that the tiny file labels rightly, but for the last ten."""
    labels = DefendedClassifier.load(tiny_model_path, device="cpu")(IMAGES).label
    labels[-10:] = (labels[-10:] + 1) % 10
    return ImageSet(IMAGES, labels)


@pytest.fixture(scope="module")
def blunt(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny file with networks of a bit a weight."""
    file, path = open_model_file(tiny_model_path), tmp_path_factory.mktemp("blunt") / "model.onnx"
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    for graph in all_graphs(proto.graph):
        for tensor in graph.initializer:
            if tensor.name.startswith(("classifier/", "member_")) and len(tensor.dims) == 4:
                tensor.CopyFrom(numpy_helper.from_array(np.sign(numpy_helper.to_array(tensor)), tensor.name))
    write_model_file(proto, file.manifest, path)
    return path


def test_flips_and_figures_are_those_of_both_files(tiny_model_path: Path, blunt: Path, clean: ImageSet) -> None:
    found = compare_precision(blunt, tiny_model_path, clean, clean)
    one, other = (DefendedClassifier.load(path, device="cpu")(IMAGES) for path in (blunt, tiny_model_path))
    assert found.label_flips == (one.label != other.label).sum() > 0
    assert found.flag_flips == (one.adversarial != other.adversarial).sum()
    assert found.float32.clean_accuracy == found.float32.label_accuracy == 0.75
    assert found.reduced.clean_accuracy == (one.label == clean.labels).mean()
    right = (other.label == clean.labels) | other.adversarial
    assert found.float32.robust_accuracy == right.mean()
    assert found.reduced.size_bytes == blunt.stat().st_size
    assert f"of 40 validation images {found.label_flips} have another label" in found.in_words


def test_a_file_beside_itself_flips_nothing(tiny_model_path: Path, clean: ImageSet) -> None:
    found = compare_precision(tiny_model_path, tiny_model_path, clean, clean)
    assert (found.label_flips, found.flag_flips) == (0, 0)
    assert found.reduced == found.float32
    check_flips(found, 0.0)


def test_more_flips_than_the_recipe_allows_are_refused(tiny_model_path: Path, blunt: Path, clean: ImageSet) -> None:
    found = compare_precision(blunt, tiny_model_path, clean, clean)
    share = max(found.label_flips, found.flag_flips) / 40
    check_flips(found, share)
    with pytest.raises(RecipeError, match=r"export\.precision: against float32, of 40 .* export\.max_flips .* allows"):
        check_flips(found, share - 0.02)


def test_the_file_in_float32_is_made_only_where_something_is_reduced(
    tiny_model_path: Path, clean: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reduced, "ADAPTIVE", replace(reduced.ADAPTIVE, steps=1, cheap_steps=5))
    file, path = open_model_file(tiny_model_path), Path(shutil.copy(tiny_model_path, tmp_path / "model.onnx"))
    clean = clean.subset(slice(0, 6))
    made: list[str] = []

    def in_float32() -> tuple[onnx.ModelProto, object]:
        made.append("float32")
        return file.proto, file.manifest

    assert with_comparison(file.manifest, path, in_float32, clean, clean, tmp_path, **ASKED) is file.manifest
    assert not made
    record = PrecisionRecord(classifier="float32", comparison=None)
    half = file.manifest.model_copy(update={"precision": record})
    compared = with_comparison(half, path, in_float32, clean, clean, tmp_path, **ASKED).precision
    assert compared is not None
    assert compared.comparison is not None
    assert compared.comparison.label_flips == 0
    times = compared.comparison.reduced.milliseconds, compared.comparison.float32.milliseconds
    assert min(one or 0.0 for one in times) > 0
    through = [one.adaptive_accuracy for one in (compared.comparison.reduced, compared.comparison.float32)]
    assert through[0] == through[1] < compared.comparison.float32.robust_accuracy, "attacks through each twin"
    assert (
        f"of {compared.comparison.adaptive_samples} attacked through each file's own twin"
        in compared.comparison.in_words
    )
    assert " ms an image (" in compared.comparison.in_words
    files = ["float32-model.onnx", "model.onnx", MEASURED_FILE]
    assert sorted(one.name for one in tmp_path.iterdir()) == files
    again = with_comparison(half, path, in_float32, clean, clean, tmp_path, **ASKED)
    assert again.precision == compared, "both are measured once"
    old = compared.comparison.model_copy(
        update={"reduced": _older(compared.comparison.reduced), "adaptive_samples": None}
    )
    written = old.model_dump(mode="json")
    assert not {"milliseconds", "adaptive_accuracy"} & set(written["reduced"])
    assert "adaptive_samples" not in written
    assert "ms an image" not in old.in_words
    assert "twin" not in old.in_words


def _older(figures: PrecisionFigures) -> PrecisionFigures:
    """As files have them in which neither time nor attacks through the twin were measured."""
    said = figures.model_dump(mode="json")
    del said["milliseconds"], said["adaptive_accuracy"]
    return PrecisionFigures.model_validate(said)


def test_one_word_is_for_all_stages_and_a_table_for_some() -> None:
    whole = load_recipe("digits", ['export.precision="float16"']).export.precision
    assert whole == StagePrecision(purifier="float16", classifier="float16", members="float16")
    eight = load_recipe("digits", ['export.precision="int8"']).export.precision
    assert eight == StagePrecision(purifier="float32", classifier="int8", members="int8")
    some = load_recipe("digits", ['export.precision={members="float16"}']).export.precision
    assert (some.purifier, some.members, some.reduced) == ("float32", "float16", True)
    assert not ExportSettings().precision.reduced
    for wrong in ('export.precision="float8"', 'export.precision={test="float16"}', "export.max_flips=2"):
        with pytest.raises(RecipeError, match=r"export\.(precision|max_flips)"):
            load_recipe("digits", [wrong])
