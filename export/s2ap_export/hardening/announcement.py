"""What a hardening says before it begins and what it refuses: replaced parts, and a file that is not worth its cost."""

from __future__ import annotations

from pathlib import Path

from s2ap_defend.errors import RecipeError
from s2ap_defend.progress import Reporter
from s2ap_train.data import Splits
from s2ap_train.hardening.forecast import Forecast, forecast
from s2ap_train.hardening.given import check_given, check_given_robust
from s2ap_train.hardening.parts import PartList
from s2ap_train.jobs import Workers, worker_count
from s2ap_train.models import create
from s2ap_train.pruning.prunable import check_prunable
from s2ap_train.recipe import Recipe
from s2ap_train.redteam.report.verdict import verdict
from s2ap_train.redteam.results import Evaluation
from s2ap_train.storage.parts import PartStore, silent_reporter

__all__ = ["announce", "check_replaced", "check_worth"]

_ROUGH = "about {}, measured on a few steps of each network; half or twice as long is possible"


def announce(recipe: Recipe, splits: Splits, work_dir: Path, reporter: Reporter, *, workers: Workers = None) -> None:
    """Check what was given and say what will be done. Nothing is written.

    Args:
        recipe: What is to be done.
        splits: Its data.
        work_dir: Where parts may lie that are reused.
        reporter: Shows it.
        workers: Processes.

    Raises:
        RecipeError: If a classifier that was given does not know these images.
    """
    counts = ", ".join(f"{len(part)} {name}" for name, part in splits.by_name.items())
    channels, height, width = splits.image_shape
    reporter.line(f"data: {splits.name}, {len(splits.classes)} classes, {channels}x{height}x{width}; images: {counts}")
    given = check_given(recipe, splits)
    if given is not None:
        reporter.line(f"classifier: as given, {given.accuracy:.1%} of the validation images right")
    for note in given.notes if given is not None else ():
        reporter.line(f"  note: {note}")
    robust = check_given_robust(recipe, splits)
    if robust is not None:
        reporter.line(
            f"robust classifier: as given, {robust[0].accuracy:.1%} of the validation images right, {robust[1]:.1%} "
            "under attack"
        )
    for note in (*(robust[0].notes if robust is not None else ()), *_pruning_notes(recipe, splits)):
        reporter.line(f"  note: {note}")
    expected = forecast(recipe, splits)
    store, parts = PartStore(work_dir, silent_reporter()), PartList(recipe, splits).all()
    stored = {part.name for part in parts if (work_dir / part.name).exists() and not store.differs(part)}
    left = Forecast(tuple(one for one in expected.phases if one.name not in stored), expected.disk)
    processes = 1 if workers == "ray" else worker_count(workers, len(parts))
    for phase in left.phases:
        reporter.line(f"  {phase.name}: {_duration(phase.seconds)} of one core")
    if stored:
        reporter.line(f"  stored already: {', '.join(one.name for one in parts if one.name in stored)}")
    reporter.line(
        f"{len(parts)} parts, {processes} processes, {expected.disk / 1e6:.0f} MB of checkpoints: "
        + _ROUGH.format(_duration(left.seconds(processes)))
    )


def _pruning_notes(recipe: Recipe, splits: Splits) -> tuple[str, ...]:
    """What is made of a network's outputs, and what pruning leaves of it as it is."""
    robust = create(recipe.robust_model, splits.image_shape, len(splits.classes))
    own = () if recipe.given.classifier is not None or recipe.given.robust is not None else robust.notes
    return (*own, *check_prunable(robust, splits.image_shape, recipe.pruning))


def check_replaced(recipe: Recipe, splits: Splits, work_dir: Path) -> None:
    """Refuse a work folder whose finished parts would be trained again, because settings, data or source changed.

    Raises:
        RecipeError: With the parts, and what changed.
    """
    store = PartStore(work_dir, silent_reporter())
    stale = {part.name: other for part in PartList(recipe, splits).all() if (other := store.differs(part))}
    if stale:
        listed = ", ".join(f"{name} (other {other})" for name, other in list(stale.items())[:4])
        more = f" and {len(stale) - 4} more" if len(stale) > 4 else ""
        raise RecipeError(
            f"{work_dir} holds finished parts that were trained otherwise: {listed}{more}; name another --work-dir or "
            "output, or give --overwrite to train them again there"
        )


def check_worth(evaluation: Evaluation, candidate: Path) -> None:
    """Refuse a file that is not worth its cost.

    Raises:
        RecipeError: With the verdict, and where the file is.
    """
    found = verdict(evaluation)
    if found.level in {"masked", "doubtful", "below"}:
        raise RecipeError(
            f"--strict: {found.title}. {found.text} The file is not written to its place, it lies in {candidate}; give "
            "more --effort or images, or leave --strict out"
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
