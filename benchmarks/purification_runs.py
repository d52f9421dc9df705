"""Systems of the purification benchmark: each attacked in a process of its own and stored in the work folder."""

import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from purification_attacks import GRADIENT, Attacked, Attacker
from purification_variants import Make, Preset, variants
from rich.console import Console
from torch import Tensor

from s2ap_defend.progress import Reporter
from s2ap_defend.types import Bool
from s2ap_train import adaptive, attacks, purifier
from s2ap_train.attacks import oblivious
from s2ap_train.compute.threads import one_thread
from s2ap_train.data import ImageSet, Splits
from s2ap_train.hardening.network import known_network
from s2ap_train.hardening.parts import PartList
from s2ap_train.jobs import Found, ResumableJob, Store, run_resumable
from s2ap_train.models import fold_batch_norm
from s2ap_train.purifier.variants import Variant
from s2ap_train.recipe import Recipe
from s2ap_train.statistics.paired import mcnemar
from s2ap_train.storage.fingerprint import fingerprint, weights_digest
from s2ap_train.storage.parts import PartStore

CLASSIFIERS = ("plain", "adversarial", "pruned")
"""In the order of the tables."""

SHARD = 250
"""Images that one job attacks: what an interruption loses."""

Classify = Callable[[Tensor], Tensor]
_TOOK, _ATTACKED, _NOISY = "took", "attacked", "noisy"


@dataclass(frozen=True)
class Setting:
    """What decides every figure: travels to the processes.

    Attributes:
        recipe: Data, classifiers, score model, the purifier of the row 'recipe'.
        preset: Sizes.
        folder: Work folder.
    """

    recipe: Recipe
    preset: Preset
    folder: Path

    def key(self, weights: str) -> str:
        """Fingerprint of it with that of the weights."""
        recipe = self.recipe.model_dump(mode="json", include={"data", "seed", "eps", "purifier"})
        return fingerprint((recipe, self.preset, weights, _code()))


@cache
def _code() -> str:
    """SHA-256 over the source of every attack and purifier: figures of other code are not reused."""
    here = [Path(__file__).with_name(f"purification_{name}.py") for name in ("attacks", "variants")]
    folders = [Path(package.__file__ or "").parent for package in (attacks, adaptive, purifier)]
    sources = [*here, *sorted(path for folder in folders for path in folder.glob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


class Parts:
    """Networks and data of a setting; trained where they are not kept yet.

    Args:
        setting: The recipe and the folder.
        reporter: Shows the training.
    """

    def __init__(self, setting: Setting, reporter: Reporter) -> None:
        recipe = setting.recipe
        self.setting = setting
        self.splits: Splits = recipe.load_data()
        with one_thread():
            parts = PartList(recipe, self.splits)
            classifiers, score_models = parts.classifiers(), parts.score_models()
            ready = PartStore(setting.folder, reporter).prepare([*classifiers.values(), *score_models])
        networks = [known_network(ready[name].model, ready[name].record) for name in classifiers]
        self.score_model: purifier.UNet = ready[score_models[-1].name].model
        self.networks = dict(zip(CLASSIFIERS, networks, strict=True))
        self.classifiers: dict[str, Classify] = {
            name: fold_batch_norm(network.model) for name, network in self.networks.items()
        }
        self.makes: dict[str, Make] = variants(recipe.purifier, setting.preset)

    @cached_property
    def data(self) -> ImageSet:
        """The attacked test images."""
        return self.splits.test.subset(slice(0, self.setting.preset.samples))

    def variant(self, name: str) -> Variant:
        """A purifier by name."""
        return self.makes[name](self.score_model, self.splits.image_shape)

    def attacker(self, classifier: str, variant: str, rows: slice = slice(None), eps: float | None = None) -> Attacker:
        """The attacks on one system, on some of the images, with the recipe's budget or another."""
        setting = self.setting
        budget = setting.recipe.eps if eps is None else eps
        make, data = partial(self.variant, variant), self.data.subset(rows)
        return Attacker(make, self.classifiers[classifier], data, budget, setting.recipe.seed, setting.preset)

    @cached_property
    def weights(self) -> str:
        """SHA-256 over all networks and the images that are attacked, with their labels."""
        images = hashlib.sha256(self.data.images.tobytes() + self.data.labels.tobytes()).hexdigest()
        return f"{images} {weights_digest((*(one.model for one in self.networks.values()), self.score_model))}"


def attack_all(
    parts: Parts, names: Sequence[str], classifiers: Sequence[str], reporter: Reporter, workers: int
) -> dict[tuple[str, str], Attacked]:
    """Attack every purifier in front of every classifier, and with the images that broke the others.

    Args:
        parts: Networks.
        names: Of the purifiers, 'off' among them.
        classifiers: Of CLASSIFIERS.
        reporter: Shows every system.
        workers: Processes.
    """
    setting = parts.setting
    wanted = [(classifier, name) for name in names for classifier in classifiers]
    starts = range(0, len(parts.data), SHARD)
    jobs = {system: [_attack_job(setting, *system, start) for start in starts] for system in wanted}
    store = Store(setting.folder / "attacked", setting.key(parts.weights))
    every = [job for of_system in jobs.values() for job in of_system]
    done = run_resumable(every, store, reporter, title="attacks", workers=workers)
    found = {system: _joined([_as_attacked(done[job.name]) for job in jobs[system]]) for system in wanted}
    with reporter.step("transfer", len(wanted)) as step, one_thread():
        for classifier, name in wanted:
            found[classifier, name].right["transfer"] = _transferred(parts, classifier, name, found)
            step.advance(name)
    return found


def curves(parts: Parts, names: Sequence[str], classifier: str, reporter: Reporter, workers: int) -> dict[str, Any]:
    """Accuracy under five descents over their budget and over their steps, JSON values by purifier.

    Next to it, over eps, what random noise leaves; over steps, whether many help the defence: on how many images the
    most steps fail where fewer succeeded, the other way round, and the largest such test by McNemar.

    Args:
        parts: Networks.
        names: Of the purifiers.
        classifier: Behind them.
        reporter: Shows every point.
        workers: Processes.
    """
    preset, eps = parts.setting.preset, parts.setting.recipe.eps
    points = [(budget, None) for budget in preset.eps] + [(eps, steps) for steps in preset.curve_steps]
    jobs = [_point_job(parts.setting, classifier, name, *point) for name in names for point in points]
    store = Store(parts.setting.folder / "curves", parts.setting.key(parts.weights))
    values = run_resumable(jobs, store, reporter, title="curves", workers=workers)
    document: dict[str, Any] = {"classifier": classifier, "eps": list(preset.eps), "steps": list(preset.curve_steps)}
    for name in names:
        over_eps = [values[_point_name(name, budget, None)].arrays for budget in preset.eps]
        over_steps = [values[_point_name(name, eps, steps)].arrays[_ATTACKED] for steps in preset.curve_steps]
        most = over_steps[-1]
        helped = [(int((most & ~fewer).sum()), int((~most & fewer).sum())) for fewer in over_steps[:-1]]
        document[name] = {
            "eps": [float(right[_ATTACKED].mean()) for right in over_eps],
            "noise": [float(right[_NOISY].mean()) for right in over_eps],
            "steps": [float(right.mean()) for right in over_steps],
            "helped": max(gained for gained, _ in helped),
            "helped_p_value": min(mcnemar(gained, lost, alternative="greater") for gained, lost in helped),
        }
    return document


def _attack_job(setting: Setting, classifier: str, name: str, start: int) -> ResumableJob:
    title = f"{name} before {classifier}, images from {start}"

    def says(found: Found) -> str:
        attacked = _as_attacked(found)
        left = np.logical_and.reduce(list(attacked.right.values())).mean()
        return f"{title}: {left:.1%} left, {sum(attacked.seconds.values()):.0f} s"

    decides = (classifier, name, start)
    return ResumableJob(title, _attack, lambda _: (setting, *decides), decides, says=says)


def _point_job(setting: Setting, classifier: str, name: str, eps: float, steps: int | None) -> ResumableJob:
    decides = (classifier, name, eps, steps)
    return ResumableJob(_point_name(name, eps, steps), _point, lambda _: (setting, *decides), decides)


def _point_name(name: str, eps: float, steps: int | None) -> str:
    return f"{name}, eps {eps:g}, steps {steps}"


def _attack(setting: Setting, classifier: str, name: str, start: int) -> Found:
    """Attack one system on the images from one on; also called in other processes."""
    with one_thread():
        parts = _loaded(setting)
        attacker = parts.attacker(classifier, name, slice(start, start + SHARD))
        bare = oblivious.pgd(parts.classifiers[classifier], attacker.data, eps=attacker.eps, seed=attacker.seed)
        attacked = attacker.run(bare)
    right = {f"right.{attack}": images for attack, images in attacked.right.items()}
    images = {f"images.{attack}": attacked.images[attack] for attack in GRADIENT}
    return Found(attacked.worst, {_TOOK: attacked.seconds}, right | images)


def _as_attacked(found: Found) -> Attacked:
    """What `_attack` found; of images, those of the gradient attacks."""
    seconds, arrays = found.notes[_TOOK], found.arrays
    right = {attack: arrays[f"right.{attack}"] for attack in seconds}
    return Attacked(right, {attack: arrays[f"images.{attack}"] for attack in GRADIENT}, seconds, found.images)


def _joined(shards: Sequence[Attacked]) -> Attacked:
    """What attacks made of all images, from what they made of some each."""
    first = shards[0]
    return Attacked(
        {name: np.concatenate([one.right[name] for one in shards]) for name in first.right},
        {name: np.concatenate([one.images[name] for one in shards]) for name in first.images},
        {name: sum(one.seconds[name] for one in shards) for name in first.seconds},
        np.concatenate([one.worst for one in shards]),
    )


def _point(setting: Setting, classifier: str, name: str, eps: float, steps: int | None) -> Found:
    """One point of a curve: what stays right under attack, and under random noise; also called in other processes."""
    with one_thread():
        parts = _loaded(setting)
        attacker = parts.attacker(classifier, name, slice(setting.preset.curve_samples), eps)
        right = {_ATTACKED: attacker.union(steps=steps), _NOISY: attacker.random_noise()}
    return Found(parts.data.images[:0], {}, right)  # the images themselves are not asked for


def _transferred(parts: Parts, classifier: str, name: str, found: Mapping[tuple[str, str], Attacked]) -> Bool:
    """Images that stay right under what broke every other system [N]."""
    system, labels = parts.attacker(classifier, name).system, parts.data.labels
    right = np.ones(len(labels), dtype=bool)
    for (other_classifier, other), attacked in found.items():
        if (other_classifier, other) == (classifier, name):
            continue
        if other == "off" or other_classifier == classifier:
            right &= system.right(attacked.worst, labels)
    return right


_KNOWN: dict[str, Parts] = {}


def _loaded(setting: Setting) -> Parts:
    """The networks of this process, loaded once."""
    key = fingerprint((setting.recipe, setting.preset, str(setting.folder)))
    if key not in _KNOWN:
        _KNOWN[key] = Parts(setting, Reporter(Console(file=io.StringIO()), line_every_s=math.inf))
    return _KNOWN[key]
