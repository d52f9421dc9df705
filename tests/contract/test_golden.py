from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from s2ap_defend import DefendedClassifier
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.model_file import ModelFile, open_model_file
from s2ap_defend.sequential import SequentialOutcome, StageAnswers, accepted_raw, run_sequential_test
from s2ap_defend.stages import CLASSIFIER, PURIFIER, cut_stage, member_scope
from s2ap_defend.types import Verdicts

GOLDEN = Path(__file__).parent / "golden"
FILES = ["version-4", "version-4-keeping", "version-4-abstaining"]


@pytest.mark.parametrize("name", FILES)
def test_a_golden_file_is_still_read_and_gives_the_same_verdicts(name: str) -> None:
    classifier = DefendedClassifier.load(GOLDEN / f"{name}.onnx", device="cpu")
    with np.load(GOLDEN / f"{name}.npz") as expected:
        verdicts = classifier(expected["images"])
        for output in ("label", "adversarial", "members_used", "votes", "log_likelihood_ratio", "abstained"):
            assert np.array_equal(getattr(verdicts, output), expected[output]), output
        assert np.abs(verdicts.purified - expected["purified"]).max() <= 1e-5


def answers(file: ModelFile, scope: str, images: np.ndarray, output: str = "log_probabilities") -> np.ndarray:
    return OnnxRuntimeEngine(cut_stage(file.proto, scope).SerializeToString(), device="cpu").run(
        {"image": images}, [output]
    )[0]


@pytest.mark.parametrize("name", FILES)
def test_the_reference_on_the_tables_as_they_are_read_gives_the_verdicts_of_a_golden_file(name: str) -> None:
    file = open_model_file(GOLDEN / f"{name}.onnx")
    images = np.random.default_rng(1).random((200, *file.manifest.input.shape), dtype=np.float32)
    purified = answers(file, PURIFIER, images, "purified")
    suspicious = file.manifest.decision.purify == "suspicious"
    said = StageAnswers(
        classifier=answers(file, CLASSIFIER, purified),
        members=np.stack(
            [
                answers(file, member_scope(i), images if member.sees == "raw" else purified)
                for i, member in enumerate(file.manifest.members)
            ]
        ),
        on_raw=answers(file, CLASSIFIER, images) if suspicious else None,
    )
    test = file.manifest.to_test()
    expected = run_sequential_test(test, said)
    verdicts = DefendedClassifier.load(file.path, device="cpu")(images)
    untouched = accepted_raw(test, said)
    assert untouched.any() == suspicious
    assert np.array_equal((verdicts.purified == images).all(axis=(1, 2, 3)), untouched)
    for field in set(Verdicts.FIELDS) & {field.name for field in fields(SequentialOutcome)}:
        assert np.array_equal(getattr(verdicts, field), getattr(expected, field)), field


def test_what_a_golden_file_says_of_its_purifier_is_read_as_it_was_written() -> None:
    purifier = open_model_file(GOLDEN / "version-4.onnx").manifest.purifier
    assert purifier.sigmas == (0.3, 0.2)
    assert purifier.precision == "float32"
