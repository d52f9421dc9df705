"""What a hardening says before it begins and what it refuses: replaced parts, and a file that is not worth its cost."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from s2ap_defend.errors import RecipeError
from s2ap_defend.progress import Reporter, duration
from s2ap_export.hardening.candidate import Candidate
from s2ap_train.data import Splits
from s2ap_train.hardening.attack_forecast import BEFORE_THE_FILE, StoredAttacks, stored_attacks
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

__all__ = ["KeptParts", "announce", "check_replaced", "check_worth", "kept_parts"]

_ROUGH = (
    "about {}, measured on a few steps of each network; half or twice as long is possible,"
    " and more where other programs share the cores"
)


@dataclass(frozen=True)
class KeptParts:
    """What a work folder holds of a recipe's parts.

    Attributes:
        names: Every part of the recipe.
        stored: Those that lie there as they would be trained.
        stale: What those were made with, in words, that would be trained again.
    """

    names: tuple[str, ...]
    stored: tuple[str, ...]
    stale: Mapping[str, str]

    @property
    def replaced(self) -> str:
        """The parts that would be trained again, in words; empty: none."""
        listed = ", ".join(f"{name} (other {other})" for name, other in list(self.stale.items())[:4])
        return listed + (f" and {len(self.stale) - 4} more" if len(self.stale) > 4 else "")


def kept_parts(recipe: Recipe, splits: Splits, work_dir: Path) -> KeptParts:
    """Look which parts of a recipe a work folder holds."""
    store, parts = PartStore(work_dir, silent_reporter()), PartList(recipe, splits).all()
    there = {part.name: store.differs(part) for part in parts if (work_dir / part.name).exists()}
    return KeptParts(
        names=tuple(part.name for part in parts),
        stored=tuple(name for name, other in there.items() if not other),
        stale={name: other for name, other in there.items() if other},
    )


def announce(
    recipe: Recipe,
    splits: Splits,
    work_dir: Path,
    kept: KeptParts,
    candidate: Candidate,
    reporter: Reporter,
    *,
    workers: Workers = None,
) -> Forecast:
    """Check what was given and say what will be done, and how long it takes. Nothing is written.

    Args:
        recipe: What is to be done.
        splits: Its data.
        work_dir: Where parts and attacks may lie that are reused.
        kept: What it holds of the parts.
        candidate: Where the file is before it is measured.
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
    whole = len(kept.stored) == len(kept.names)
    attacked = stored_attacks(recipe, splits, work_dir, choose=candidate.choose) if whole else StoredAttacks()
    done = set(kept.stored)
    if whole and candidate.made_with(recipe):
        attacked = replace(attacked, evaluation=candidate.evaluated(recipe, splits, work_dir))
        done.update(BEFORE_THE_FILE)
    expected = forecast(recipe, splits, attacked, choose=candidate.choose)
    phases = tuple(one for one in expected.phases if one.name not in done and one.seconds > 0)
    left = Forecast(phases, expected.disk)
    processes = 1 if workers == "ray" else worker_count(workers, len(kept.names))
    for phase in left.phases:
        reporter.line(f"  {phase.name}: {duration(phase.seconds)} of one core")
    if kept.stored:
        reporter.line(f"  stored already: {', '.join([*kept.stored, *_in_words(attacked)])}")
    if kept.stale:
        reporter.line(f"  trained otherwise: {kept.replaced}; --overwrite trains them again")
    reporter.line(
        f"{len(kept.names)} parts, {processes} process{'es' if processes > 1 else ''}, "
        f"{expected.disk / 1e6:.0f} MB of checkpoints: "
        + _ROUGH.format(duration(left.seconds(min(processes, os.cpu_count() or 1))))
    )
    return left


def _in_words(attacked: StoredAttacks) -> list[str]:
    counts = {"attacks on fitting images": attacked.fitting, "attacks on decisions": attacked.decisions}
    shares = {"attacks on purifiers": attacked.purifiers, "attacks on the file": attacked.evaluation}
    return [
        *(f"{count} {name}" for name, count in counts.items() if count),
        *(f"{share:.0%} of the {name}" for name, share in shares.items() if share),
    ]


def _pruning_notes(recipe: Recipe, splits: Splits) -> tuple[str, ...]:
    """What is made of a network's outputs, and what pruning leaves of it as it is."""
    robust = create(recipe.robust_model, splits.image_shape, len(splits.classes))
    own = () if recipe.given.classifier is not None or recipe.given.robust is not None else robust.notes
    return (*own, *check_prunable(robust, splits.image_shape, recipe.pruning))


def check_replaced(kept: KeptParts, work_dir: Path) -> None:
    """Refuse a work folder whose finished parts would be trained again, because settings, data or source changed.

    Raises:
        RecipeError: With the parts, and what changed.
    """
    if kept.stale:
        raise RecipeError(
            f"{work_dir} holds finished parts that were trained otherwise: {kept.replaced}; name another --work-dir or "
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
