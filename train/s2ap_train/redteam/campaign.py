"""Every attack on every shard of the images, on the defended file and on the bare classifier inside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np
from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Float32
from s2ap_train.adaptive.budget import AdaptiveBudget
from s2ap_train.attacks.budget import distortion, project
from s2ap_train.compute.threads import one_thread
from s2ap_train.data import ImageSet
from s2ap_train.jobs import SECONDS, Done, Found, ResumableJob
from s2ap_train.redteam.attacks.attack import RedTeamAttack, Task
from s2ap_train.redteam.attacks.catalogue import attack_named
from s2ap_train.redteam.attacks.own import is_own
from s2ap_train.redteam.attacks.white_box_search import SKIPPED
from s2ap_train.redteam.probes import Probe
from s2ap_train.redteam.target import open_targets
from s2ap_train.storage.fingerprint import weights_digest

__all__ = [
    "BARE",
    "DEFENDED",
    "REDTEAM_VERSION",
    "SHARD",
    "SKIPPED_SHARDS",
    "Attacked",
    "Setup",
    "attack_jobs",
    "gathered",
    "probe_jobs",
]

REDTEAM_VERSION = 7
"""Raise it with every change of what an attack does: what was found under another number is found again."""
SHARD = 60
"""Images of one shard, at the most. Shards do not depend on the number of workers, so neither does any result."""

Which = Literal["defended", "bare"]
DEFENDED: Which = "defended"
BARE: Which = "bare"
SKIPPED_SHARDS = "skipped parts"
"""Note that says why there was nothing to attack in some shards of the images."""


@dataclass(frozen=True)
class Setup:
    """Everything that attacks depend on; it travels to other processes.

    Attributes:
        model: The defended model file.
        data: Clean images and labels.
        eps: l_inf budget, pixels in [0, 1].
        l2: l2 budget, pixels in [0, 1].
        pixels: l0 budget, positions.
        seed: Of all attacks.
        budget: Steps, restarts and queries.
        surrogates: Networks that the attacker trained itself.
        server: Address of a server of the same file.
    """

    model: Path
    data: ImageSet
    eps: float
    l2: float
    pixels: int
    seed: int
    budget: AdaptiveBudget
    surrogates: tuple[nn.Module, ...] = ()
    server: str | None = None

    def key(self, weights_sha256: str, graph_sha256: str) -> object:
        """What everything that is found depends on, for the store."""
        budgets = (self.eps, self.l2, self.pixels, self.seed, self.budget)
        return REDTEAM_VERSION, weights_sha256, graph_sha256, self.data.sha256, self.data.images.shape, budgets

    def shards(self) -> list[slice]:
        """Rows of each shard."""
        count = len(self.data)
        shards = max(1, -(-count // SHARD))
        edges = np.linspace(0, count, shards + 1).round().astype(int)
        return [slice(int(start), int(stop)) for start, stop in pairwise(edges)]

    def task(self, rows: slice, *, salt: int = 0) -> Task:
        """What an attack is given for some rows; `salt` gives it other random numbers."""
        return Task(
            data=self.data.subset(rows),
            eps=self.eps,
            l2=self.l2,
            pixels=self.pixels,
            seed=(self.seed * 1_000_003 + rows.start * 7919 + salt) % 2**31,
            budget=self.budget,
            surrogates=self.surrogates,
            server=self.server,
        )


@dataclass(frozen=True)
class Attacked:
    """What one attack made of all images.

    Attributes:
        images: [N, C, H, W]; where it did not run, the clean ones.
        ran: Images that it ran on [N].
        seconds: Time of all its shards together.
        notes: Of its shards: numbers of broken images are summed, the rest is the first shard's.
    """

    images: Float32
    ran: np.ndarray
    seconds: float
    notes: Mapping[str, Any]


def attack_jobs(
    setup: Setup, attacks: Sequence[RedTeamAttack], *, until: float | None = None, always: Sequence[str] = ()
) -> list[ResumableJob]:
    """Jobs of every attack on the file and, where it can be attacked that way, on the bare classifier.

    Args:
        setup: What they depend on.
        attacks: The attacks.
        until: Time after which none is begun.
        always: Names of attacks that are begun whatever the time.
    """
    chosen = {attack.name: attack for attack in attacks}
    surrogates = weights_digest(setup.surrogates) if setup.surrogates else None
    return [
        _job(setup, attack, which, shard, rows, chosen, surrogates, None if attack.name in always else until)
        for attack in attacks
        for which in _sides(attack)
        for shard, rows in enumerate(setup.shards())
    ]


def gathered(
    setup: Setup, attacks: Sequence[RedTeamAttack], done: Done
) -> tuple[dict[str, Attacked], dict[str, Attacked]]:
    """What was found of all images: (on the defended file, on the bare classifier), by attack."""
    both: tuple[dict[str, Attacked], dict[str, Attacked]] = ({}, {})
    for attack in attacks:
        for which, found in zip((DEFENDED, BARE), both, strict=True):
            if which == BARE and attack.knows != "classifier" and BARE not in _sides(attack):
                continue
            names = [(rows, _name(attack, which, shard)) for shard, rows in enumerate(setup.shards())]
            present = [(rows, done[name]) for rows, name in names if name in done]
            if present:
                found[attack.name] = _joined(setup.data.images, present)
    return both


def probe_jobs(setup: Setup, probes: Sequence[Probe], *, images: int, until: float | None = None) -> list[ResumableJob]:
    """Jobs of further runs on the defended file, each on the first `images` images, at most those of one shard."""
    rows = slice(0, min(images, SHARD, len(setup.data)))
    return [
        ResumableJob(
            name=probe.name,
            function=_probed,
            arguments=lambda _, probe=probe: (setup.model, probe, setup.task(rows)),  # type: ignore[misc]
            decides=("probe", probe.kind, probe.at, rows.stop),
            weight=probe.weight * rows.stop / SHARD,
            until=until,
        )
        for probe in probes
    ]


def _joined(clean: Float32, shards: Sequence[tuple[slice, Found]]) -> Attacked:
    """All shards of one attack; one where it had nothing to attack counts as one that it was not run on."""
    images, ran = clean.copy(), np.zeros(len(clean), dtype=bool)
    able = [(rows, found) for rows, found in shards if SKIPPED not in found.notes]
    for rows, found in able:
        images[rows], ran[rows] = found.images, True
    notes = {key: value for key, value in (able or shards)[0][1].notes.items() if key != SECONDS}
    if able and len(able) < len(shards):
        notes[SKIPPED_SHARDS] = next(found.notes[SKIPPED] for _, found in shards if SKIPPED in found.notes)
    if "broken_by" in notes:
        counts: dict[str, int] = {}
        for _, found in able:
            for name, count in found.notes["broken_by"].items():
                counts[name] = counts.get(name, 0) + count
        notes["broken_by"] = counts
    return Attacked(images, ran, sum(float(found.notes[SECONDS]) for _, found in shards), notes)


def _sides(attack: RedTeamAttack) -> tuple[Which, ...]:
    """On what an attack is made; what knows the classifier alone finds the same for the file and for the classifier."""
    if attack.needs_test or attack.knows in {"nothing", "classifier"}:
        return (DEFENDED,)
    return DEFENDED, BARE


def _name(attack: RedTeamAttack, which: Which, shard: int) -> str:
    side = which if which in _sides(attack) else DEFENDED
    return f"{attack.name} on the {side}, part {shard + 1}"


def _job(
    setup: Setup,
    attack: RedTeamAttack,
    which: Which,
    shard: int,
    rows: slice,
    chosen: Mapping[str, RedTeamAttack],
    surrogates: str | None,
    until: float | None,
) -> ResumableJob:
    before = [chosen[name] for name in attack.after if name in chosen]
    waits = [_name(one, which, shard) for one in before if not (which == BARE and one.needs_test)]
    if attack.after and which == DEFENDED and not attack.needs_test:
        waits.append(_name(attack, BARE, shard))  # what the bare classifier fell for is tried on the defence

    def arguments(done: Done) -> tuple[Any, ...]:
        task = replace(
            setup.task(rows, salt=crc32(attack.name.encode())),
            known={name: found.images for name, found in done.items()},
        )
        return setup.model, which, attack.name, task

    return ResumableJob(
        name=_name(attack, which, shard),
        function=_attacked,
        arguments=arguments,
        decides=(
            attack.name + attack.version,
            which,
            rows.start,
            rows.stop,
            surrogates if attack.needs == "surrogates" else None,
        ),
        after=tuple(waits),
        weight=attack.weight * (1.0 if which == DEFENDED else 0.2) * (rows.stop - rows.start) / SHARD,
        until=until,
        lasts=attack.needs != "server",  # what a server shows of its evidence is in no key
    )


def _attacked(model: Path, which: Which, name: str, task: Task) -> Found:
    """One attack on one shard; also called in other processes."""
    attack = attack_named(name)
    with one_thread():
        defended, bare = open_targets(model)
        found = attack.run(defended if which == DEFENDED else bare, task)
    return Found(_inside(found.images, attack, task), found.notes)


def _probed(model: Path, probe: Probe, task: Task) -> Found:
    """One further run; also called in other processes."""
    with one_thread():
        return probe(open_targets(model)[0], task)


def _inside(images: Float32, attack: RedTeamAttack, task: Task) -> Float32:
    """The images, which must be finite, in [0, 1] and in the ball of the attack's norm.

    Raises:
        ValueError: If they are not: a bug of the attack, whose figures would be worth nothing.
        RecipeError: If it is a user's own.
    """
    kind = RecipeError if is_own(attack.name) else ValueError
    clean = task.data.images
    if images.shape != clean.shape or not np.isfinite(images).all():
        raise kind(f"{attack.name} returned images of shape {images.shape}, or not finite ones")
    images = images.astype(np.float32)
    if attack.norm == "linf":
        return project(images, clean, task.eps)
    images = images.clip(0.0, 1.0)
    _, l2, l0 = distortion(clean, images)
    if attack.norm == "l2" and (l2 > task.l2 * (1 + 1e-4)).any():
        raise kind(f"{attack.name} left the l2 ball: {l2.max()} > {task.l2}")
    if attack.norm == "l0" and (l0 > task.pixels).any():
        raise kind(f"{attack.name} changed {int(l0.max())} positions, {task.pixels} are allowed")
    return images
