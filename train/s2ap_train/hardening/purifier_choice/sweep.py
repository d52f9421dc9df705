"""The sweep: every purifier attacked with its own gradient, each attack tried on all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from s2ap_defend.progress import Reporter
from s2ap_defend.types import Bool, Float32
from s2ap_train.compute.threads import one_thread
from s2ap_train.data import ImageSet
from s2ap_train.hardening.purifier_choice.attack import (
    BPDA,
    GRADIENT,
    NOT_BROKEN,
    SURROGATE,
    Behind,
    Jury,
    attack,
    attack_in_words,
    milliseconds,
    oblivious_attack,
    square_attack,
)
from s2ap_train.jobs import Found, ResumableJob, Store, run_resumable
from s2ap_train.purifier import Purification, hadamard_bank
from s2ap_train.purifier.purify import Score
from s2ap_train.purifier.variants import Variant, off, purification
from s2ap_train.recipe.purifier_grid import ChoiceSettings, canonical, settings_of
from s2ap_train.storage.fingerprint import fingerprint

__all__ = ["OBLIVIOUS", "Defence", "Sweep", "Tried"]


@dataclass(frozen=True)
class Defence:
    """A purifier is tried in front of this, on these images.

    Attributes:
        score: The score model.
        behind: Classifier and members.
        data: Images and labels.
        eps: l_inf budget of the attack, pixels in [0, 1].
        seed: Of the attack.
    """

    score: Score
    behind: Behind
    data: ImageSet
    eps: float
    seed: int

    def variant(self, config: Purification) -> Variant:
        """The purifier of that configuration, for these images."""
        if config.off:
            return off()
        channels, height, width = self.data.images.shape[1:]
        bank = hadamard_bank(config.bank_size, (channels, height, width), config.bank_seed)
        return purification(settings_of(config).in_words, self.score, bank.to(self.behind.device), config)


@dataclass(frozen=True)
class Tried:
    """One purifier and which images were right behind it.

    Attributes:
        config: The purifier.
        clean: Without attack [N].
        oblivious: Under the attack made without a purifier [N].
        gradient: Under both, and the descents along this purifier's exact gradient [N].
        bpda: Of those, broken along the gradient of the identity [N].
        surrogate: Of those, broken along the gradient of the J-free purifier [N].
        square: Of those, broken by answers alone [N]; None: not tried.
        adaptive: Under every attack, those on other purifiers included [N].
        milliseconds: Time of one image.
    """

    config: Purification
    clean: Bool
    oblivious: Bool
    gradient: Bool
    bpda: Bool
    surrogate: Bool
    square: Bool | None
    adaptive: Bool
    milliseconds: float


OBLIVIOUS = "the attack that knows of no purifier"
"""Name of the job that all others start from."""
_MILLISECONDS, _BY = "milliseconds", "by"


@dataclass(frozen=True)
class Sweep:
    """Tries purifiers in front of one defence.

    Attributes:
        defence: What they stand in front of.
        settings: Of the attack.
        store: Attacks of earlier runs.
        reporter: Shows every purifier.
        workers: Processes that attack at the same time; None takes one a core. One works in this process; for more,
            score model and networks travel as pickles.
        title: Of the progress that is shown.
    """

    defence: Defence
    settings: ChoiceSettings
    store: Store
    reporter: Reporter
    workers: int | None = None
    title: str = "purifiers under attack"

    def run(self, configs: Sequence[Purification], searched: Sequence[Purification] = ()) -> tuple[Tried, ...]:
        """What is left of each purifier; all of them face the images found for any of them.

        The attack on one purifier starts from random points and from the attack without a purifier, so what it finds
        does not depend on which others are tried, nor on the number of processes.

        Args:
            configs: The purifiers.
            searched: Those of them that Square attacks, too; it goes on where the descents on that purifier failed.

        Raises:
            RecipeError: If a process was killed.
        """
        configs, searched = [canonical(config) for config in configs], [canonical(config) for config in searched]
        with one_thread():
            jobs = self.jobs(configs, searched)
            done = run_resumable(jobs, self.store, self.reporter, title=self.title, workers=self.workers)
            found = {config: done[_attack_name(config)] for config in configs}
            squares = {config: done[_square_name(config)].images for config in searched}
            pool = [done[OBLIVIOUS].images, *(one.images for one in found.values()), *squares.values()]
            return tuple(self._judged(config, pool, found[config], squares.get(config)) for config in configs)

    def jobs(self, configs: Iterable[Purification], searched: Iterable[Purification] = ()) -> list[ResumableJob]:
        """The attacks that `run` makes: without a purifier, on each, and by Square on what that left of some.

        Args:
            configs: The purifiers, in their canonical form.
            searched: Those of them that Square attacks, too.
        """
        blind = ResumableJob(OBLIVIOUS, _oblivious, lambda _: (self.defence,), OBLIVIOUS)
        attacks = [self._attack_job(config) for config in dict.fromkeys(configs)]
        return [blind, *attacks, *(self._square_job(config) for config in dict.fromkeys(searched))]

    def _attack_job(self, config: Purification) -> ResumableJob:
        words = settings_of(config).in_words
        return ResumableJob(
            name=_attack_name(config),
            function=_attacked,
            arguments=lambda done: (self.defence, self.settings, config, done[OBLIVIOUS].images),
            decides=(config, attack_in_words(self.settings)),
            after=(OBLIVIOUS,),
            weight=1.0 + config.work,
            says=lambda one: f"{(one.arrays[_BY] == NOT_BROKEN).mean():6.1%} right under its own attack: {words}",
        )

    def _square_job(self, config: Purification) -> ResumableJob:
        name = _attack_name(config)
        return ResumableJob(
            name=_square_name(config),
            function=_searched,
            arguments=lambda done: (self.defence, self.settings, config, done[name]),
            decides=("square", config, attack_in_words(self.settings)),
            after=(name,),
            weight=1.0 + config.work,
        )

    def _judged(self, config: Purification, pool: Sequence[Float32], found: Found, searched: Float32 | None) -> Tried:
        """Who is right behind a purifier; the `pool` of attacked images begins with those that know of no purifier."""
        defence = self.defence
        jury, data, by = Jury(defence.behind.view(defence.variant(config))), defence.data, found.arrays[_BY]
        clean, oblivious = jury.right(data.images, data.labels), jury.right(pool[0], data.labels)
        gradient = clean & oblivious & (by != GRADIENT)
        adaptive = gradient & (by == NOT_BROKEN)
        square = None
        if searched is not None:
            square = adaptive & ~jury.right(searched, data.labels)
            adaptive &= ~square
        left = np.flatnonzero(adaptive)
        for images in pool[1:]:
            if len(left) > 0:
                left = left[jury.right(images[left], data.labels[left])]
        adaptive = np.zeros(len(data), dtype=bool)
        adaptive[left] = True
        return Tried(
            config=config,
            clean=clean,
            oblivious=oblivious,
            gradient=gradient,
            bpda=gradient & (by == BPDA),
            surrogate=gradient & (by == SURROGATE),
            square=square,
            adaptive=adaptive,
            milliseconds=found.notes[_MILLISECONDS],
        )


def _attack_name(config: Purification) -> str:
    """Name of the job that attacks a purifier, of every run: words round its numbers and leave out the bank's seed."""
    return f"{settings_of(config).in_words} [{fingerprint(config)[:8]}]"


def _square_name(config: Purification) -> str:
    return f"Square on {_attack_name(config)}"


def _oblivious(defence: Defence) -> Found:
    """The attack without a purifier; also run in other processes."""
    with one_thread():
        return Found(oblivious_attack(defence.behind, defence.data, eps=defence.eps, seed=defence.seed))


def _attacked(defence: Defence, settings: ChoiceSettings, config: Purification, blind: Float32) -> Found:
    """The attack on one purifier; also run in other processes."""
    variant, behind, data = defence.variant(config), defence.behind, defence.data
    with one_thread():
        attacked = attack(variant, behind, data, settings, eps=defence.eps, seed=defence.seed, candidates=[blind])
        took = milliseconds(variant, behind, data)
        return Found(attacked.images, {_MILLISECONDS: took}, {_BY: attacked.by})


def _searched(defence: Defence, settings: ChoiceSettings, config: Purification, found: Found) -> Found:
    """The Square attack on what is left behind one purifier; also run in other processes."""
    images, rows = found.images.copy(), np.flatnonzero(found.arrays[_BY] == NOT_BROKEN)
    if len(rows) > 0:
        variant, data = defence.variant(config), defence.data.subset(rows)
        with one_thread():
            images[rows] = square_attack(variant, defence.behind, data, settings, eps=defence.eps, seed=defence.seed)
    return Found(images)
