"""The sweep: every purifier attacked by who knows it, each attack tried on all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from s2ap_defend.progress import Reporter
from s2ap_defend.types import Bool, Float32, Int64
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
from s2ap_train.jobs import Job, run_jobs, worker_count
from s2ap_train.kept import KeptAttacks
from s2ap_train.purifier import Purification, hadamard_bank
from s2ap_train.purifier.purify import Score
from s2ap_train.purifier.variants import Variant, off, purification
from s2ap_train.recipe.purifier_grid import ChoiceSettings, canonical, settings_of

__all__ = ["Defence", "Sweep", "Tried"]


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


@dataclass(frozen=True)
class _Found:
    """What the attack on one purifier found, as `Attacked` says, and the time that one image takes there."""

    images: Float32
    by: Int64
    milliseconds: float


@dataclass(frozen=True)
class Sweep:
    """Tries purifiers in front of one defence.

    Attributes:
        defence: What they stand in front of.
        settings: Of the attack.
        kept: Attacks of earlier runs.
        reporter: Told about every purifier.
        workers: Processes that attack at the same time; None takes one a core. One works in this process; for more,
            score model and networks travel as pickles.
        title: Of the progress that is shown.
    """

    defence: Defence
    settings: ChoiceSettings
    kept: KeptAttacks
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
            blind = self._oblivious()
            found = self._found(configs, blind)
            squares = self._squares({config: found[config] for config in searched})
            pool = [blind, *(found[config].images for config in dict.fromkeys(configs)), *squares.values()]
            return tuple(self._judged(config, pool, found[config], squares.get(config)) for config in configs)

    def _oblivious(self) -> Float32:
        """Images of the attack without a purifier, kept or made."""
        defence = self.defence
        kept = self.kept.load("oblivious", defence.data.images.shape)
        if kept is not None:
            return kept[0]
        images = oblivious_attack(defence.behind, defence.data, eps=defence.eps, seed=defence.seed)
        self.kept.save("oblivious", images, {})
        return images

    def _found(self, configs: Sequence[Purification], blind: Float32) -> dict[Purification, _Found]:
        """The attack on each purifier, kept or made; the dearest ones are begun first."""
        defence, shape = self.defence, self.defence.data.images.shape
        found: dict[Purification, _Found] = {}
        for config in configs:
            kept = self.kept.load(self._part(config), shape)
            by = np.asarray(kept[1].get("by"), dtype=object) if kept else np.empty(0)
            if kept is not None and by.shape == shape[:1]:
                found[config] = _Found(kept[0], by.astype(np.int64), float(kept[1]["milliseconds"]))
        missing = {
            f"purifier {place}": config
            for place, config in enumerate(sorted({*configs} - {*found}, key=lambda one: (-one.work, repr(one))))
        }

        def job(name: str, config: Purification) -> Job[_Found]:
            return Job(name, _attacked, lambda: (defence, self.settings, config, blind))

        if found:
            self.reporter.line(f"{self.title}: {len(found)} of {len(configs)} reused")
        if not missing:
            return found
        with self.reporter.step(self.title, len(configs)) as step:
            step.advance(done=len(found))
            jobs = [job(*item) for item in missing.items()]
            for done, one in run_jobs(jobs, worker_count(self.workers, len(jobs))):
                config = missing[done.name]
                found[config] = one
                notes = {"milliseconds": one.milliseconds, "by": one.by.tolist()}
                self.kept.save(self._part(config), one.images, notes)
                step.advance(f"{len(found)} of {len(configs)}")
                right = (one.by == NOT_BROKEN).mean()
                self.reporter.line(f"{right:6.1%} right under its own attack: {settings_of(config).in_words}")
        return found

    def _squares(self, found: Mapping[Purification, _Found]) -> dict[Purification, Float32]:
        """Images of the Square attack on some purifiers, kept or made; what was broken before is left as it is."""
        defence, shape = self.defence, self.defence.data.images.shape
        kept = {config: self.kept.load(("square", self._part(config)), shape) for config in found}
        images = {config: one[0] for config, one in kept.items() if one is not None}
        missing = {f"square {place}": config for place, config in enumerate(found) if config not in images}

        def job(name: str, config: Purification) -> Job[Float32]:
            return Job(name, _searched, lambda: (defence, self.settings, config, found[config]))

        if not missing:
            return images
        with self.reporter.step("Square, by answers alone", len(missing)) as step:
            jobs = [job(*item) for item in missing.items()]
            for done, one in run_jobs(jobs, worker_count(self.workers, len(jobs))):
                config = missing[done.name]
                images[config] = one
                self.kept.save(("square", self._part(config)), one, {})
                step.advance(settings_of(config).in_words)
        return {config: images[config] for config in found}

    def _part(self, config: Purification) -> object:
        return config, attack_in_words(self.settings)

    def _judged(self, config: Purification, pool: Sequence[Float32], found: _Found, searched: Float32 | None) -> Tried:
        """Who is right behind a purifier; the `pool` of attacked images begins with those that know of no purifier."""
        defence = self.defence
        jury, data = Jury(defence.behind.view(defence.variant(config))), defence.data
        clean, oblivious = jury.right(data.images, data.labels), jury.right(pool[0], data.labels)
        gradient = clean & oblivious & (found.by != GRADIENT)
        adaptive = gradient & (found.by == NOT_BROKEN)
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
            bpda=gradient & (found.by == BPDA),
            surrogate=gradient & (found.by == SURROGATE),
            square=square,
            adaptive=adaptive,
            milliseconds=found.milliseconds,
        )


def _attacked(defence: Defence, settings: ChoiceSettings, config: Purification, blind: Float32) -> _Found:
    """The attack on one purifier; also run in other processes."""
    variant = defence.variant(config)
    with one_thread():
        attacked = attack(
            variant,
            defence.behind,
            defence.data,
            settings,
            eps=defence.eps,
            seed=defence.seed,
            candidates=[blind],
        )
        return _Found(attacked.images, attacked.by, milliseconds(variant, defence.behind, defence.data))


def _searched(defence: Defence, settings: ChoiceSettings, config: Purification, found: _Found) -> Float32:
    """The Square attack on what is left behind one purifier; also run in other processes."""
    images, rows = found.images.copy(), np.flatnonzero(found.by == NOT_BROKEN)
    if len(rows) > 0:
        with one_thread():
            images[rows] = square_attack(
                defence.variant(config),
                defence.behind,
                ImageSet(defence.data.images[rows], defence.data.labels[rows]),
                settings,
                eps=defence.eps,
                seed=defence.seed,
            )
    return images
