"""Manifests of older format versions, translated before they are checked."""

from collections.abc import Callable
from typing import Any

Fields = dict[str, Any]

_TEST_OF_2 = ("correction", "curtailed", "base_vote_weights", "base_vote_edges", "calibration")
_MEMBER_OF_2 = ("seeds", "flops", "parameters", "milliseconds")
_TEST: dict[str, Callable[[Any], Fields]] = {
    "base_vote_weight": lambda weight: {"base_vote_weights": [weight], "base_vote_edges": []},
    "calibration_samples": lambda samples: {"calibration": {"on": "correct", "samples": samples}},
}
_MEMBER: dict[str, Callable[[Any], Fields]] = {
    "seed": lambda seed: {"seeds": {"initialisation": seed, "mask": seed, "order": seed}},
}


def upgrade_version_1(data: Fields) -> Fields:
    """The JSON object of a version-1 manifest in the words of version 2; the argument stays as it is.

    Its vote was not curtailed and corrected every flagged input with one weight; one seed drew everything of a member;
    it was calibrated on inputs that the classifier gets right. What is missing or wrong stays so, to be refused as in
    any manifest.

    Raises:
        ValueError: If it holds a key that version 1 does not have and version 2 has.
    """
    upgraded = {**data, "format_version": 2}
    test, members = data.get("test"), data.get("members")
    if isinstance(test, dict):
        translated = _translate(test, _TEST, _TEST_OF_2, "test")
        upgraded["test"] = {**translated, "correction": "correct", "curtailed": False}
    if isinstance(members, list):
        upgraded["members"] = [
            _translate(member, _MEMBER, _MEMBER_OF_2, f"members.{i}") if isinstance(member, dict) else member
            for i, member in enumerate(members)
        ]
    return upgraded


def _translate(part: Fields, words: dict[str, Callable[[Any], Fields]], newer: tuple[str, ...], place: str) -> Fields:
    """One object of the manifest with its words replaced."""
    translated: Fields = {}
    for key, value in part.items():
        if key in newer:
            raise ValueError(f"{place}.{key} is no key of version 1")
        translated |= words[key](value) if key in words else {key: value}
    return translated
