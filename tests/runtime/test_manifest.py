import json
import math
from typing import Any

import pytest

from s2ap_defend.errors import ModelFileError
from s2ap_defend.manifest import CalibrationRecord, Manifest, Seeds, read_manifest
from tests.runtime.manifest_data import manifest_data, version_1


def test_a_manifest_survives_writing_and_reading_bit_for_bit() -> None:
    manifest = Manifest.model_validate_json(json.dumps(manifest_data()))
    again = read_manifest(manifest.to_json(), source="model.onnx")
    assert again == manifest
    assert again.to_json() == manifest.to_json()


def test_version_1_is_read_in_the_words_of_version_3() -> None:
    manifest = read_manifest(json.dumps(version_1()), source="model.onnx")
    test, (member,) = manifest.test, manifest.members
    assert manifest.format_version == 3
    assert manifest.purifier.sigmas == (0.25, 0.25)
    assert (test.base_vote_weights, test.base_vote_edges) == ((0.25,), ())
    assert (test.correction, test.curtailed) == ("correct", False)
    assert test.calibration == CalibrationRecord(on="correct", samples=300)
    assert member.seeds == Seeds(initialisation=7, mask=7, order=7)
    assert (member.flops, member.parameters, member.milliseconds) == (None, None, None)
    assert read_manifest(manifest.to_json(), source="model.onnx") == manifest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"curtailed": True}, r"model\.onnx: the manifest is not valid: test\.curtailed is no key of version 1"),
        ({"base_vote_weight": "much"}, r"test\.base_vote_weights\.0"),
        ({"calibration_samples": -1}, r"test\.calibration\.samples"),
        ({"surprise": 1}, r"test\.surprise"),
        ({"lower": []}, "lower"),
    ],
)
def test_what_is_wrong_in_version_1_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_manifest(json.dumps(version_1(**changes)), source="model.onnx")


@pytest.mark.parametrize(("part", "value"), [("test", 3), ("members", {}), ("members", [3]), ("members", None)])
def test_parts_of_version_1_that_are_no_objects_are_refused(part: str, value: object) -> None:
    with pytest.raises(ModelFileError, match=part):
        read_manifest(json.dumps(version_1() | {part: value}), source="model.onnx")


@pytest.mark.parametrize("truncation", ["clean", "adversarial", "sign", "abstain"])
@pytest.mark.parametrize("correction", ["correct", "reject"])
def test_policies_become_the_tables_of_the_reference(truncation: str, correction: str) -> None:
    data = manifest_data()
    data["test"] |= {"truncation": truncation, "correction": correction}
    test = read_manifest(json.dumps(data), source="model.onnx").test.to_test()
    threshold = {"clean": math.inf, "adversarial": -math.inf, "sign": 0.0, "abstain": math.inf}[truncation]
    assert test.final_threshold == threshold
    assert test.undecided_abstains == (truncation == "abstain")
    assert test.correct == (correction == "correct")
    assert test.curtail
    assert (test.base_vote_weights.tolist(), test.base_vote_edges.tolist()) == ([1.0, 0.5], [3.0])


def test_another_version_is_refused_with_both_versions() -> None:
    data = manifest_data() | {"format_version": 4}
    with pytest.raises(
        ModelFileError, match=r"model\.onnx carries manifest version 4, this runtime reads 1, 2 and 3; install"
    ):
        read_manifest(json.dumps(data), source="model.onnx")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "null"])
def test_text_that_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(ModelFileError, match="manifest"):
        read_manifest(text, source="model.onnx")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("surprise",), 1, "surprise"),
        (("purifier", "password"), 1, r"purifier\.password"),
        (("test", "waves"), [2], "waves"),
        (("test", "upper"), [-9.0, 1.0], "upper"),
        (("test", "increments"), [[0.0, 1.0]] * 2, "test"),
        (("weights_sha256",), "abc", "weights_sha256"),
        (("members",), [], "members"),
        (("classes",), ["a", "a"], "class names repeat"),
        (("input", "channels"), 0, r"input\.channels"),
        (("test", "truncation"), "maybe", r"test\.truncation"),
        (("test", "base_vote_weights"), [1.0], "base_vote_weights"),
        (("test", "base_vote_weights"), [1.0, 1.5], r"base_vote_weights\.1"),
        (("test", "calibration", "on"), "wrong", r"test\.calibration\.on"),
        (("test", "calibration", "reference_ratios"), [1.0, 0.0], "reference_ratios must ascend"),
        (("members", 0, "seeds", "mask"), None, r"members\.0\.seeds\.mask"),
        (("members", 0, "flops"), -1, r"members\.0\.flops"),
    ],
)
def test_unknown_or_contradictory_keys_are_named(path: tuple[str | int, ...], value: object, message: str) -> None:
    data = manifest_data()
    table: Any = data
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    with pytest.raises(ModelFileError, match=message) as caught:
        read_manifest(json.dumps(data), source="model.onnx")
    assert "\n" not in str(caught.value)
