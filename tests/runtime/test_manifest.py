import json
import math
from typing import Any

import pytest

from s2ap_defend.errors import ModelFileError
from s2ap_defend.manifest import Manifest, read_manifest
from tests.runtime.manifest_data import decision_data, manifest_data


def test_a_manifest_survives_writing_and_reading_bit_for_bit() -> None:
    manifest = Manifest.model_validate_json(json.dumps(manifest_data()))
    again = read_manifest(manifest.to_json(), source="model.onnx")
    assert again == manifest
    assert again.to_json() == manifest.to_json()


def test_a_manifest_says_how_images_were_resized_where_they_were() -> None:
    data = manifest_data()
    plain = read_manifest(json.dumps(data), source="model.onnx")
    assert plain.input.resize is None
    assert '"resize"' not in plain.to_json(), "as files that were written before"
    data["input"] |= {"height": 20, "width": 12, "resize": "pad"}
    padded = read_manifest(json.dumps(data), source="model.onnx")
    assert padded.input.shape[1:] == (20, 12)
    assert json.loads(padded.to_json())["input"]["resize"] == "pad"
    data["input"]["resize"] = "squeeze"
    with pytest.raises(ModelFileError, match=r"input\.resize"):
        read_manifest(json.dumps(data), source="model.onnx")


@pytest.mark.parametrize("truncation", ["clean", "adversarial", "sign", "abstain"])
@pytest.mark.parametrize("correction", ["correct", "keep", "reject"])
def test_policies_become_the_tables_of_the_reference(truncation: str, correction: str) -> None:
    data = manifest_data()
    data["test"] |= {"truncation": truncation, "correction": correction}
    test = read_manifest(json.dumps(data), source="model.onnx").to_test()
    threshold = {"clean": math.inf, "adversarial": -math.inf, "sign": 0.0, "abstain": math.inf}[truncation]
    assert test.final_threshold == threshold
    assert test.undecided_abstains == (truncation == "abstain")
    assert test.correction == correction
    assert test.curtail
    assert test.vote_weights.tolist() == [1.0]
    assert (test.answer, test.jury_share, test.amplification) == ("mixed", 0.75, 2.0)


@pytest.mark.parametrize(
    ("version", "cure"),
    [
        (1, "harden its recipe again"),
        (3, "harden its recipe again"),
        *((other, "install the s2ap-defend release that wrote it") for other in (5, "4", 4.0, True, None)),
    ],
)
def test_another_version_is_refused_with_both_versions_and_what_to_do(version: object, cure: str) -> None:
    data = manifest_data() | {"format_version": version}
    with pytest.raises(ModelFileError) as caught:
        read_manifest(json.dumps(data), source="model.onnx")
    assert str(caught.value) == f"model.onnx carries manifest version {version!r}, this runtime reads 4; {cure}"


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "null"])
def test_text_that_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(ModelFileError, match="manifest"):
        read_manifest(text, source="model.onnx")


MEASURED = {
    "attack": "worst case",
    "eps": 0.1,
    "samples": 10,
    "bare_accuracy": 0.0,
    "robust_accuracy": 0.8,
    "label_accuracy": 0.7,
    "flagged": 0.3,
    "members_used": 3.5,
}


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
        (("test", "opening"), 2, "opening is 2"),
        (("members", 0, "vote_weight"), 0.3, "multiples of 1/256"),
        (("members", 0, "role"), "sensor", "a sensor has no vote"),
        (("decision", "answer"), "best", r"decision\.answer"),
        (("decision",), decision_data(purify="off", frontier=None), "decision.purify is 'off'"),
        (("decision", "frontier", "chosen"), 2, "row 2 is chosen, there are 2"),
        (("decision", "frontier", "chosen"), 1, "answer is 'mixed', the chosen row of the frontier has 'robust'"),
        (("decision", "jury_share"), 0.5, r"jury_share is 0\.5, the chosen row of the frontier has 0\.75"),
        (("decision", "jury_share"), 1.5, r"decision\.jury_share"),
        (("decision", "amplification"), 0.0, r"decision\.amplification"),
        (("decision", "frontier", "rows", 1, "label_accuracy"), 0.9, r"0\.9 exceeds robust_accuracy 0\.8"),
        (("decision", "frontier", "rows", 0, "cost"), math.nan, r"rows\.0\.cost"),
        (("measured",), [MEASURED | {"label_accuracy": 0.9}], r"0\.9 exceeds robust_accuracy 0\.8"),
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


@pytest.mark.parametrize(
    "path",
    [
        *[("members", 0, key) for key in manifest_data()["members"][0]],
        *[("test", "calibration", key) for key in manifest_data()["test"]["calibration"]],
        *[("purifier", key) for key in manifest_data()["purifier"]],
    ],
    ids=lambda path: ".".join(map(str, path)),
)
def test_a_missing_key_is_named_also_where_null_would_be_read(path: tuple[str | int, ...]) -> None:
    data = manifest_data()
    table: Any = data
    for key in path[:-1]:
        table = table[key]
    del table[path[-1]]
    with pytest.raises(ModelFileError, match=rf"not valid at {'.'.join(map(str, path))}: Field required"):
        read_manifest(json.dumps(data), source="model.onnx")
