"""The sweep: every purifier attacked by who knows it, each attack tried on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from s2ap_defend.progress import Reporter
from s2ap_defend.types import Bool, Float32
from s2ap_train.data import ImageSet
from s2ap_train.jobs import Job, run_jobs, worker_count
from s2ap_train.purifier import Purification, hadamard_bank
from s2ap_train.purifier.purify import Score
from s2ap_train.purifier.variants import Variant, off, purification
from s2ap_train.purifier_choice.attack import Behind, Jury, attack, attack_in_words, milliseconds, oblivious_attack
from s2ap_train.purifier_choice.kept import KeptAttacks
from s2ap_train.purifier_grid import ChoiceSettings, canonical, settings_of
from s2ap_train.threads import one_thread

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
        adaptive: Under every attack, those on other purifiers included [N].
        milliseconds: Time of one image.
    """

    config: Purification
    clean: Bool
    oblivious: Bool
    adaptive: Bool
    milliseconds: float


@dataclass(frozen=True)
class _Found:
    """Images that the attack on one purifier found [N, C, H, W], and the time that one image takes there."""

    images: Float32
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
    """

    defence: Defence
    settings: ChoiceSettings
    kept: KeptAttacks
    reporter: Reporter
    workers: int | None = None

    def run(self, configs: Sequence[Purification]) -> tuple[Tried, ...]:
        """What is left of each purifier; all of them face the images found for any of them.

        The attack on one purifier starts from random points and from the attack without a purifier, so what it finds
        does not depend on which others are tried, nor on the number of processes.

        Raises:
            RecipeError: If a process was killed.
        """
        configs = [canonical(config) for config in configs]
        with one_thread():
            blind = self._oblivious()
            found = self._found(configs, blind)
            images = [blind, *(one.images for one in found)]
            return tuple(
                self._judged(config, images, one.milliseconds) for config, one in zip(configs, found, strict=True)
            )

    def _oblivious(self) -> Float32:
        """Images of the attack without a purifier, kept or made."""
        defence = self.defence
        kept = self.kept.load("oblivious", defence.data.images.shape)
        if kept is not None:
            return kept[0]
        images = oblivious_attack(defence.behind, defence.data, eps=defence.eps, seed=defence.seed)
        self.kept.save("oblivious", images, 0.0)
        return images

    def _found(self, configs: Sequence[Purification], blind: Float32) -> list[_Found]:
        """The attack on each purifier, kept or made; the dearest ones are begun first."""
        defence, shape = self.defence, self.defence.data.images.shape
        kept = {config: self.kept.load(self._part(config), shape) for config in configs}
        found = {config: _Found(*one) for config, one in kept.items() if one is not None}
        missing = {
            f"purifier {place}": config
            for place, config in enumerate(sorted({*configs} - {*found}, key=lambda one: (-one.work, repr(one))))
        }

        def job(name: str, config: Purification) -> Job[_Found]:
            return Job(name, _attacked, lambda: (defence, self.settings, config, blind))

        if found:
            self.reporter.line(f"attacks on purifiers: {len(found)} of {len(configs)} reused")
        with self.reporter.step("purifiers under attack", len(configs)) as step:
            step.advance(done=len(found))
            jobs = [job(*item) for item in missing.items()]
            for done, one in run_jobs(jobs, worker_count(self.workers, len(jobs))):
                config = missing[done.name]
                found[config] = one
                self.kept.save(self._part(config), one.images, one.milliseconds)
                right = Jury(defence.behind.view(defence.variant(config))).right(one.images, defence.data.labels)
                step.advance(f"{len(found)} of {len(configs)}")
                self.reporter.line(f"{right.mean():6.1%} right under its own attack: {settings_of(config).in_words}")
        return [found[config] for config in configs]

    def _part(self, config: Purification) -> object:
        return config, attack_in_words(self.settings)

    def _judged(self, config: Purification, attacks: Sequence[Float32], time: float) -> Tried:
        """Who is right behind a purifier; `attacks` begin with the one that knows of none."""
        defence = self.defence
        jury, data = Jury(defence.behind.view(defence.variant(config))), defence.data
        clean, oblivious = jury.right(data.images, data.labels), jury.right(attacks[0], data.labels)
        left = np.flatnonzero(clean & oblivious)
        for images in attacks[1:]:
            if len(left) > 0:
                left = left[jury.right(images[left], data.labels[left])]
        adaptive = np.zeros(len(data), dtype=bool)
        adaptive[left] = True
        return Tried(config, clean, oblivious, adaptive, time)


def _attacked(defence: Defence, settings: ChoiceSettings, config: Purification, blind: Float32) -> _Found:
    """The attack on one purifier; also run in other processes."""
    variant = defence.variant(config)
    with one_thread():
        images = attack(
            variant,
            defence.behind,
            defence.data,
            settings,
            eps=defence.eps,
            seed=defence.seed,
            candidates=[blind],
        )
        return _Found(images, milliseconds(variant, defence.behind, defence.data))
