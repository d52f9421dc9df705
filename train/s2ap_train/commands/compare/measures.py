"""The figures of a run that are compared, and the types that a comparison needs in metrics.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from s2ap_defend.errors import RecipeError
from s2ap_train.storage.run_folder import METRICS_FILE, RunFolder


@dataclass(frozen=True)
class Measure:
    """A figure of a run: its key in metrics.json, what it is called, and whether it is a share in [0, 1]."""

    key: str
    title: str
    share: bool = False


EPOCH_FLIPS = "flip_between_epochs"
"""The one measure that is no key of its own: the mean of `stability.flip_between_epochs`."""
MEASURES = (
    Measure("sparsity", "pruned", share=True),
    Measure("clean_accuracy", "clean", share=True),
    Measure("mask_robust_accuracy", "mask robust", share=True),
    Measure("robust_accuracy", "robust", share=True),
    Measure("seconds_mask_search", "seconds"),
    Measure("sharpness", "sharpness"),
    Measure("hessian_eigenvalue", "lambda max"),
    Measure("hessian_eigenvalue_relative", "lambda max, relative"),
    Measure("flip_rate", "flip rate", share=True),
    Measure(EPOCH_FLIPS, "between epochs", share=True),
)


@dataclass(frozen=True)
class _Kind:
    """What a value must be: in words, and as a test."""

    words: str
    accepts: Callable[[object], bool]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # so neither NaN


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


_TEXT = _Kind("text", lambda value: isinstance(value, str))
_TABLE = _Kind("a table", lambda value: isinstance(value, Mapping))
_NAME = _Kind("text or a table", lambda value: isinstance(value, str | Mapping))
_WHOLE = _Kind("a whole number", _is_whole)
_NUMBER = _Kind("a finite number", _is_number)
_SECONDS = _Kind("a finite number from 0", lambda value: _is_number(value) and value >= 0)  # type: ignore[operator]
_SHARES = _Kind(
    "a list of finite numbers",
    lambda value: isinstance(value, list) and all(each is None or _is_number(each) for each in value),
)
_CLASSES = _Kind("a list of whole numbers", lambda value: isinstance(value, list) and all(map(_is_whole, value)))

REQUIRED = {
    "method": _TEXT,
    "structure": _TEXT,
    "seed": _WHOLE,
    "data": _NAME,
    "model": _NAME,
    "sparsity": _NUMBER,
    "attack": _TABLE,
}
_OPTIONAL = {
    **{measure.key: _NUMBER for measure in MEASURES if measure.key != EPOCH_FLIPS},
    "seconds_mask_search": _SECONDS,
    "base": _TEXT,
    "target_sparsity": _NUMBER,
    "collapse": _TEXT,
    "stability": _TABLE,
    "after": _TABLE,
}
_NESTED = {
    "stability": {EPOCH_FLIPS: _SHARES},
    "after": {"images_sha256": _TEXT, "samples": _WHOLE, "predicted": _CLASSES, "correct": _TABLE},
}


def check_metrics(run: RunFolder) -> None:
    """Refuse a run whose metrics lack what a comparison needs, or hold it with another type.

    Raises:
        RecipeError: That names the file and the first key that is wrong.
    """
    path, metrics = run.folder / METRICS_FILE, run.metrics
    missing = [key for key in REQUIRED if metrics.get(key) is None]
    if missing:
        raise RecipeError(f"{path} lacks {', '.join(missing)}; the run was not finished: run prune again")
    if not isinstance(metrics["attack"], Mapping):
        raise RecipeError(f"{path} describes no attack; run prune again")
    _check(f"{path}:", metrics, REQUIRED | _OPTIONAL)
    for key, kinds in _NESTED.items():
        _check(f"{path}: {key},", metrics.get(key) or {}, kinds)


def _check(where: str, table: Mapping[str, Any], kinds: Mapping[str, _Kind]) -> None:
    for key, kind in kinds.items():
        value = table.get(key)
        if value is not None and not kind.accepts(value):
            raise RecipeError(f"{where} {key} is {_shown(value)}, expected {kind.words}; run prune again")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
