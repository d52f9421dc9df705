"""Many pieces of work that each find images: spread over processes, kept as they end, never done twice."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from s2ap_defend.progress import Reporter
from s2ap_train.jobs import Job, Workers, run_jobs, worker_count
from s2ap_train.kept import KeptAttacks
from s2ap_train.redteam.attacks.attack import Found

__all__ = ["SECONDS", "Piece", "run_pieces"]

SECONDS = "seconds"
"""Note of every piece: the time that it took, in the run that did it."""

Done = Mapping[str, Found]
"""What pieces found, by their names."""


@dataclass(frozen=True)
class Piece:
    """A call that finds images.

    Attributes:
        name: Unique; shown as progress.
        function: Importable by name; returns `Found`.
        arguments: Given what the pieces in `after` found, as far as they were done.
        shape: Of the images that it finds.
        decides: Everything beside the key of the store, and beside what the pieces in `after` found, that its result
            depends on.
        after: Names of the pieces that it waits for.
        weight: Its time, roughly, against others.
        until: Time (`time.time()`) after which it is not begun; None: it always is.
        lasts: Whether what it finds is kept between runs; not where it depends on something that no key can hold.
    """

    name: str
    function: Callable[..., Found]
    arguments: Callable[[Done], tuple[Any, ...]]
    shape: tuple[int, ...]
    decides: object
    after: tuple[str, ...] = ()
    weight: float = 1.0
    until: float | None = field(default=None, compare=False)
    lasts: bool = True

    def key(self, done: Done) -> object:
        """What its result depends on, for the store: images of pieces that it starts from are in it."""
        if not self.after:
            return self.decides
        digest = hashlib.sha256()
        for name in self.after:
            if name in done:
                digest.update(name.encode() + done[name].images.tobytes())
        return self.decides, digest.hexdigest()


def run_pieces(
    pieces: Sequence[Piece], kept: KeptAttacks, reporter: Reporter, *, title: str, workers: Workers = None
) -> dict[str, Found]:
    """What the pieces found; those that were kept are not done again, each is kept as soon as it ends.

    Args:
        pieces: In any order; those that take long are begun first.
        kept: The store.
        reporter: Told about every piece, with an estimate of the time left.
        title: Of the progress that is shown.
        workers: Processes; None takes one a core; or "ray", where every node must see the files that pieces read.

    Returns:
        By name; a piece whose time was over before it began is not there.

    Raises:
        RecipeError: If a process was killed; what a piece raises is raised here.
    """
    done = _kept(pieces, kept)
    missing = {piece.name: piece for piece in pieces if piece.name not in done}
    if done:
        reporter.line(f"{title}: {len(done)} of {len(pieces)} parts reused")
    if not missing:
        return done
    jobs = [_job(piece, done, kept) for piece in _longest_first(missing)]
    with reporter.step(title, len(pieces)) as step:
        step.advance(done=len(done))
        began, total, finished = time.monotonic(), sum(piece.weight for piece in missing.values()), 0.0
        for job, result in run_jobs(jobs, workers if workers == "ray" else worker_count(workers, len(jobs))):
            piece = missing[job.name]
            finished += piece.weight
            if result is not None:
                if piece.lasts:
                    kept.save(piece.key(done), result.images, result.notes)
                done[piece.name] = result
            left = (time.monotonic() - began) * (total / finished - 1.0)
            step.advance(f"{piece.name}; about {_duration(left)} left" if finished < total else "")
    return done


def _kept(pieces: Sequence[Piece], kept: KeptAttacks) -> dict[str, Found]:
    """What is kept of pieces; one that starts from others is, where these are and found what it started from."""
    done: dict[str, Found] = {}
    names = {piece.name for piece in pieces}
    waiting = [piece for piece in pieces if piece.lasts]
    while ready := [piece for piece in waiting if names.intersection(piece.after) <= done.keys()]:
        waiting = [piece for piece in waiting if piece not in ready]
        for piece in ready:
            found = kept.load(piece.key(done), piece.shape)
            if found is not None:
                done[piece.name] = Found(*found)
    return done


def _longest_first(missing: Mapping[str, Piece]) -> list[Piece]:
    """Pieces in the order in which they are begun: by what is still to come behind them, themselves included."""
    behind: dict[str, float] = {}

    def weight(name: str) -> float:
        if name not in behind:
            later = [weight(other.name) for other in missing.values() if name in other.after]
            behind[name] = missing[name].weight + max(later, default=0.0)
        return behind[name]

    return sorted(missing.values(), key=lambda piece: -weight(piece.name))


def _job(piece: Piece, done: dict[str, Found], kept: KeptAttacks) -> Job[Found | None]:
    def arguments() -> tuple[Any, ...]:
        before = {name: done[name] for name in piece.after if name in done}
        found = kept.load(piece.key(done), piece.shape) if piece.lasts and piece.after else None
        if found is not None:  # those before it were done again, and found the same
            return _handed_back, None, (Found(*found),)
        return piece.function, piece.until, piece.arguments(before)

    return Job(piece.name, _timed, arguments, piece.after)


def _timed(function: Callable[..., Found], until: float | None, arguments: tuple[Any, ...]) -> Found | None:
    """Run a piece and note its time, unless its time is over; also called in other processes."""
    if until is not None and time.time() > until:
        return None
    began = time.perf_counter()
    found = function(*arguments)
    return Found(found.images, {SECONDS: time.perf_counter() - began, **found.notes})


def _handed_back(found: Found) -> Found:
    return found


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
