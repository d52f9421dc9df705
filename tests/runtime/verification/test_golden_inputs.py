"""Golden inputs: made of numbers, the same everywhere, and with verdicts that hang on no rounding."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from s2ap_defend import DefendedClassifier, ModelFileError
from s2ap_defend.golden_record import GOLDEN_KEY, GoldenRecord, read_golden
from s2ap_defend.model_file import open_model_file, write_model_file
from s2ap_defend.verification.golden import answer_golden, generated_pixels


def test_generated_images_are_the_same_everywhere_and_go_from_patches_to_noise() -> None:
    pixels = generated_pixels((3, 16, 12))
    assert pixels.shape == (8, 3, 16, 12)
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == "db9d1d7e1461570e"
    rough = np.abs(np.diff(pixels.astype(int), axis=3)).mean(axis=(1, 2, 3))
    assert (np.diff(rough) > 0).all()
    assert len(np.unique(pixels[0, 0])) <= 16


def test_of_large_images_there_are_fewer() -> None:
    assert len(generated_pixels((3, 224, 224))) == 6
    assert len(generated_pixels((3, 640, 640))) == 2


def test_golden_answers_are_those_of_the_file_to_its_images(answered: Path) -> None:
    file = open_model_file(answered)
    golden = read_golden(file.proto)
    assert golden is not None
    images = golden.images((1, 8, 8))
    assert images.dtype == np.float32
    assert 0.0 <= images.min() <= images.max() <= 1.0
    verdicts = DefendedClassifier.load(answered, device="cpu", executor="whole")(images)
    assert list(golden.label) == verdicts.label.tolist()
    assert list(golden.log_likelihood_ratio) == verdicts.log_likelihood_ratio.tolist()
    assert list(golden.members_used) == verdicts.members_used.tolist()
    assert len(set(golden.members_used)) > 1  # decided after different numbers of members
    assert set(golden.adversarial) == {True, False}


def test_golden_answers_stay_when_pixels_move_as_far_as_another_engine_rounds(answered: Path) -> None:
    golden = read_golden(open_model_file(answered).proto)
    assert golden is not None
    images = golden.images((1, 8, 8))
    moved = np.clip(images + np.random.default_rng(7).uniform(-1e-6, 1e-6, images.shape), 0, 1).astype(np.float32)
    verdicts = DefendedClassifier.load(answered, device="cpu")(moved)
    assert verdicts.label.tolist() == list(golden.label)
    assert verdicts.log_likelihood_ratio.tolist() == list(golden.log_likelihood_ratio)


def test_they_are_no_part_of_the_manifest_and_a_rewritten_file_has_none_unless_given(
    answered: Path, tiny_model_path: Path, tmp_path: Path
) -> None:
    file = open_model_file(answered)
    assert file.manifest == open_model_file(tiny_model_path).manifest
    assert [entry.key for entry in file.proto.metadata_props] == ["s2ap_defend", GOLDEN_KEY]
    write_model_file(file.proto, file.manifest, tmp_path / "rewritten.onnx")
    assert read_golden(open_model_file(tmp_path / "rewritten.onnx").proto) is None


def test_the_same_file_gets_the_same_golden_answers(answered: Path) -> None:
    file = open_model_file(answered)
    assert answer_golden(file) == read_golden(file.proto)


def test_a_record_needs_one_answer_of_each_kind_for_an_image(answered: Path) -> None:
    golden = read_golden(open_model_file(answered).proto)
    assert golden is not None
    with pytest.raises(ValueError, match="expected one answer of each kind for an image"):
        GoldenRecord.model_validate(golden.model_dump() | {"label": (1,)})
    with pytest.raises(ModelFileError, match="the golden inputs are no base64"):
        golden.model_copy(update={"pixels": "*"}).images((1, 8, 8))
