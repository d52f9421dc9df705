"""What a manifest says of its purifier and of how it was chosen."""

import json
from typing import Any

import pytest

from s2ap_defend.errors import ModelFileError
from s2ap_defend.manifest import Manifest, PurifierSettings, read_manifest
from tests.runtime.manifest_data import manifest_data, row_data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("purifier", "sigmas"), [0.3], r"sigmas holds 1 noise levels for 2 steps"),
        (("purifier", "sigmas"), [0.3, 0.0], r"purifier\.sigmas\.1"),
        (("purifier", "precision"), "float8", r"purifier\.precision"),
        (("purifier", "rho"), 0.1, r"choice\.rows\.1 is chosen with rho 0\.2, the purifier has 0\.1"),
        (("purifier", "choice", "chosen"), 3, r"chosen is 3, there are 3 rows"),
        (("purifier", "choice", "chosen"), 0, r"choice\.rows\.0 is chosen with sigmas"),
        (("purifier", "choice", "by"), "taste", r"choice\.by"),
        (("purifier", "choice", "reason"), "", r"choice\.reason"),
        (("purifier", "choice", "rows"), [row_data()] * 3, "one row must be off, found 0"),
        (("purifier", "bank_size"), 3, r"bank_size is 3; directions come in pairs"),
        (("purifier", "choice", "rows", 1, "bank_size"), 3, r"bank_size is 3; directions come in pairs"),
        (("purifier", "choice", "rows", 1, "adaptive_interval"), [0.1, 0.4], r"rows\.1\.adaptive_interval"),
        (
            ("purifier", "choice", "rows", 1, "clean_accuracy"),
            0.955,
            r"rows\.1\.clean_accuracy 0\.955 is no share",
        ),
        (
            ("purifier", "choice", "rows", 1, "clean_accuracy"),
            0.5,
            r"gradient_accuracy 0\.55 is above clean_acc",
        ),
        (
            ("purifier", "choice", "rows", 1, "oblivious_accuracy"),
            0.5,
            r"gradient_accuracy 0\.55 is above obliv",
        ),
        (("purifier", "choice", "rows", 1, "gradient_accuracy"), 0.52, r"adaptive_accuracy 0\.5 is above 0\.49, what"),
        (("purifier", "choice", "rows", 1, "ungraded", "bpda"), 4, r"adaptive_accuracy 0\.5 is above 0\.49, what"),
        (("purifier", "choice", "rows", 1, "network_passes"), 8, r"network_passes is 8, these settings take 16"),
        (("purifier", "choice", "rows", 0, "p_against_rho_0"), 0.5, r"rows\.0\.p_against_rho_0 must be null"),
        (("purifier", "choice", "rows", 2, "p_against_rho_0"), 0.5, r"rows\.2\.p_against_rho_0 must be null"),
        (("purifier", "choice", "rows", 2, "rho"), 0.2, "two rows have the same settings"),
        (("purifier", "choice", "by"), "validation", r"chosen is 1 by validation, with adaptive_accuracy 0\.5 and 16"),
        (
            ("purifier", "choice", "by"),
            "decision",
            r"chosen is 1 by a decision that purifies nothing, but that row is not",
        ),
        (("purifier", "choice", "reference", "clean_accuracy"), 0.965, r"reference\.clean_accuracy is no share of 100"),
        (
            ("purifier", "choice", "reference", "clean_accuracy"),
            0.5,
            r"reference\.adaptive_accuracy is above its",
        ),
        (("purifier", "choice", "rows", 1, "p_against_off"), None, r"rows\.1\.p_against_off must be null"),
        (("purifier", "choice", "rows", 0, "p_against_off"), 0.5, r"rows\.0\.p_against_off must be null"),
    ],
)
def test_a_purifier_that_contradicts_itself_or_its_choice_is_refused(
    path: tuple[str | int, ...], value: object, message: str
) -> None:
    data = manifest_data()
    table: Any = data
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    with pytest.raises(ModelFileError, match=message) as caught:
        read_manifest(json.dumps(data), source="model.onnx")
    assert "\n" not in str(caught.value)


def test_a_row_that_validation_chose_is_the_highest_with_the_fewest_passes() -> None:
    data = manifest_data()
    choice = data["purifier"]["choice"]
    choice["by"] = "validation"
    choice["rows"][0] |= {"adaptive_accuracy": 0.45}
    choice["rows"][2] |= {"adaptive_accuracy": 0.49}
    assert read_manifest(json.dumps(data), source="model.onnx").purifier.choice is not None
    choice["rows"][2] |= {"adaptive_accuracy": 0.5}
    with pytest.raises(ModelFileError, match=r"has 0\.5 with 8"):
        read_manifest(json.dumps(data), source="model.onnx")


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        # K = 2 steps, M = 2 directions; docs/purifier.md
        ({}, 16),
        ({"reuse_ascent": True}, 12),
        ({"rho": 0.0}, 8),
        ({"mode": "j_free"}, 8),
        ({"mode": "j_free", "reuse_ascent": True}, 6),
        ({"mode": "j_free", "rho": 0.0}, 4),
        ({"steps": 0, "sigmas": ()}, 0),
    ],
)
def test_network_passes_follow_from_the_settings(changes: dict[str, object], passes: int) -> None:
    assert settings(**changes).passes == passes


def settings(**changes: object) -> PurifierSettings:
    row = row_data()
    return PurifierSettings.model_validate({key: row[key] for key in PurifierSettings.model_fields} | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0, "sigmas": ()}, "off"),
        ({}, "full gradient, sigma 0.3 0.2, radius 0.1 linf, 2 steps of 0.7, rho 0.2, bank of 2"),
        (
            {"steps": 1, "sigmas": (0.1,), "mode": "j_free", "norm": "l2", "reuse_ascent": True},
            "J-free, sigma 0.1, radius 0.1 l2, 1 step of 0.7, rho 0.2 (reused ascent), bank of 2",
        ),
        (
            {"sigmas": (0.3, 0.3), "rho": 0.0, "reuse_ascent": True},
            "full gradient, sigma 0.3, radius 0.1 linf, 2 steps of 0.7, rho 0, bank of 2",
        ),
    ],
)
def test_a_purifier_is_told_in_one_line(changes: dict[str, object], words: str) -> None:
    assert settings(**changes).in_words == words


def test_the_row_without_a_purifier_is_found() -> None:
    choice = Manifest.model_validate_json(json.dumps(manifest_data())).purifier.choice
    assert choice is not None
    assert [row.off for row in choice.rows] == [True, False, False]
    assert choice.off is choice.rows[0]
