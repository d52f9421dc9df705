"""Manifests of older format versions, translated before they are checked."""

from collections.abc import Callable
from typing import Any

Fields = dict[str, Any]

_MOST_STEPS = 1000  # of a purifier of version 2: a wrong count must not fill the memory

_TEST_OF_2 = ("correction", "curtailed", "base_vote_weights", "base_vote_edges", "calibration")
_MEMBER_OF_2 = ("seeds", "flops", "parameters", "milliseconds")
_PURIFIER_OF_3 = ("sigmas", "precision", "choice")
_TEST: dict[str, Callable[[Any], Fields]] = {
    "base_vote_weight": lambda weight: {"base_vote_weights": [weight], "base_vote_edges": []},
    "calibration_samples": lambda samples: {"calibration": {"on": "correct", "samples": samples}},
}
_MEMBER: dict[str, Callable[[Any], Fields]] = {
    "seed": lambda seed: {"seeds": {"initialisation": seed, "mask": seed, "order": seed}},
}


def upgraded(data: Fields, version: int) -> Fields:
    """The JSON object of a manifest of an older version in the words of the newest; the argument stays as it is.

    Raises:
        ValueError: If it holds a key that its version does not have and a newer one has.
    """
    return _upgrade_version_2(_upgrade_version_1(data) if version == 1 else data, version)


def _upgrade_version_1(data: Fields) -> Fields:
    """The JSON object of a version-1 manifest in the words of version 2.

    Its vote was not curtailed and corrected every flagged input with one weight; one seed drew everything of a member;
    it was calibrated on inputs that the classifier gets right. What is missing or wrong stays so, to be refused as in
    any manifest.
    """
    changed = {**data, "format_version": 2}
    test, members = data.get("test"), data.get("members")
    if isinstance(test, dict):
        translated = _translate(test, _TEST, _TEST_OF_2, "test")
        changed["test"] = {**translated, "correction": "correct", "curtailed": False}
    if isinstance(members, list):
        changed["members"] = [
            _translate(member, _MEMBER, _MEMBER_OF_2, f"members.{i}") if isinstance(member, dict) else member
            for i, member in enumerate(members)
        ]
    return changed


def _upgrade_version_2(data: Fields, version: int) -> Fields:
    """The JSON object of a version-2 manifest in the words of version 3: one sigma served all steps, in float32.

    Args:
        data: The object.
        version: Of the file, for messages.
    """
    changed = {**data, "format_version": 3}
    purifier = data.get("purifier")
    if isinstance(purifier, dict):
        steps = purifier.get("steps")
        # what is wrong stays so, to be refused by name
        times = steps if type(steps) is int and 0 < steps <= _MOST_STEPS else 1
        words: dict[str, Callable[[Any], Fields]] = {"sigma": lambda sigma: {"sigmas": [sigma] * times}}
        translated = _translate(purifier, words, _PURIFIER_OF_3, "purifier", version=version)
        changed["purifier"] = {**translated, "precision": "float32", "choice": None}
    return changed


def _translate(
    part: Fields, words: dict[str, Callable[[Any], Fields]], newer: tuple[str, ...], place: str, *, version: int = 1
) -> Fields:
    """One object of the manifest with its words replaced."""
    translated: Fields = {}
    for key, value in part.items():
        if key in newer:
            raise ValueError(f"{place}.{key} is no key of version {version}")
        translated |= words[key](value) if key in words else {key: value}
    return translated
