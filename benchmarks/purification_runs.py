"""Systems of the purification benchmark: each attacked in a process of its own and kept in the work folder."""

import hashlib
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from purification_attacks import GRADIENT, Attacked, Attacker
from purification_variants import Make, Preset, variants
from rich.console import Console
from torch import Tensor

from s2ap_defend.files import replace_file
from s2ap_defend.progress import Reporter
from s2ap_defend.types import Bool
from s2ap_train import adaptive, attacks, purifier
from s2ap_train.attacks import oblivious
from s2ap_train.compute.threads import one_thread
from s2ap_train.data import ImageSet, Splits
from s2ap_train.hardening.network import known_network
from s2ap_train.hardening.parts import PartList
from s2ap_train.jobs import Job, run_jobs
from s2ap_train.models import fold_batch_norm
from s2ap_train.purifier.variants import Variant
from s2ap_train.recipe import Recipe
from s2ap_train.statistics.paired import mcnemar
from s2ap_train.storage.fingerprint import fingerprint
from s2ap_train.storage.parts import PartStore

CLASSIFIERS = ("plain", "adversarial", "pruned")
"""In the order of the tables."""

Classify = Callable[[Tensor], Tensor]


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
        reporter: Told about training.
    """

    def __init__(self, setting: Setting, reporter: Reporter) -> None:
        recipe = setting.recipe
        self.setting = setting
        self.splits: Splits = recipe.load_data()
        with one_thread():
            parts = PartList(recipe, self.splits)
            classifiers, score_model = parts.classifiers(), parts.score_model()
            ready = PartStore(setting.folder, reporter).prepare([*classifiers.values(), score_model])
        networks = [known_network(ready[name].model, ready[name].record) for name in classifiers]
        self.score_model: purifier.UNet = ready[score_model.name].model
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

    def attacker(self, classifier: str, variant: str, eps: float | None = None) -> Attacker:
        """The attacks on one system, with the recipe's budget or another."""
        setting = self.setting
        budget = setting.recipe.eps if eps is None else eps
        make = partial(self.variant, variant)
        return Attacker(make, self.classifiers[classifier], self.data, budget, setting.recipe.seed, setting.preset)

    @cached_property
    def weights(self) -> str:
        """SHA-256 over all networks and the images that are attacked, with their labels."""
        digest = hashlib.sha256(self.data.images.tobytes() + self.data.labels.tobytes())
        for network in (*(n.model for n in self.networks.values()), self.score_model):
            digest.update(f"{network}{network.architecture()}".encode())
            for name, tensor in network.state_dict().items():
                digest.update(f"{name}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
        return digest.hexdigest()


def attack_all(parts: Parts, names: Sequence[str], reporter: Reporter, workers: int) -> dict[tuple[str, str], Attacked]:
    """Attack every purifier in front of every classifier, and with the images that broke the others.

    Args:
        parts: Networks.
        names: Of the purifiers, 'off' among them.
        reporter: Told about every system.
        workers: Processes.
    """
    setting = parts.setting
    wanted = [(classifier, name) for name in names for classifier in CLASSIFIERS]
    missing = [system for system in wanted if _read(_file(parts, *system)) is None]
    jobs = [
        Job(f"{name} before {classifier}", _attack, partial(tuple, (setting, classifier, name)))
        for classifier, name in missing
    ]
    with reporter.step("attacks", len(wanted)) as step:
        step.advance("kept", done=len(wanted) - len(missing))
        for _, line in run_jobs(jobs, workers):
            step.advance(line)
            reporter.line(line)
    found = {system: read for system in wanted if (read := _read(_file(parts, *system))) is not None}
    with reporter.step("transfer", len(wanted)) as step, one_thread():
        for classifier, name in wanted:
            found[classifier, name].right["transfer"] = _transferred(parts, classifier, name, found)
            step.advance(name)
    return found


def curves(parts: Parts, names: Sequence[str], classifier: str, reporter: Reporter, workers: int) -> dict[str, Any]:
    """Accuracy under five descents over their budget and over their steps, JSON values by purifier.

    Beside it, over eps, what random noise leaves; over steps, whether many help the defence: on how many images the
    most steps fail where fewer succeeded, the other way round, and the largest such test by McNemar.

    Args:
        parts: Networks.
        names: Of the purifiers.
        classifier: Behind them.
        reporter: Told about every point.
        workers: Processes.
    """
    preset, eps = parts.setting.preset, parts.setting.recipe.eps
    points = [(budget, None) for budget in preset.eps] + [(eps, steps) for steps in preset.curve_steps]
    jobs = [
        Job(
            f"{name}, eps {budget:g}, steps {steps}",
            _point,
            partial(tuple, (parts.setting, classifier, name, budget, steps)),
        )
        for name in names
        for budget, steps in points
    ]
    values: dict[str, tuple[Bool, Bool]] = {}
    with reporter.step("curves", len(jobs)) as step:
        for job, found in run_jobs(jobs, workers):
            values[job.name] = found
            step.advance(job.name)
    document: dict[str, Any] = {"classifier": classifier, "eps": list(preset.eps), "steps": list(preset.curve_steps)}
    for name in names:
        over_eps = [values[f"{name}, eps {budget:g}, steps None"] for budget in preset.eps]
        over_steps = [values[f"{name}, eps {eps:g}, steps {steps}"][0] for steps in preset.curve_steps]
        most = over_steps[-1]
        helped = [(int((most & ~fewer).sum()), int((~most & fewer).sum())) for fewer in over_steps[:-1]]
        document[name] = {
            "eps": [float(right.mean()) for right, _ in over_eps],
            "noise": [float(noise.mean()) for _, noise in over_eps],
            "steps": [float(right.mean()) for right in over_steps],
            "helped": max(gained for gained, _ in helped),
            "helped_p_value": min(mcnemar(gained, lost, alternative="greater") for gained, lost in helped),
        }
    return document


def _attack(setting: Setting, classifier: str, name: str) -> str:
    """Attack one system in this process and keep what was made; returns a line about it."""
    with one_thread():
        parts = _loaded(setting)
        attacker = parts.attacker(classifier, name)
        bare = oblivious.pgd(parts.classifiers[classifier], parts.data, eps=attacker.eps, seed=attacker.seed)
        attacked = attacker.run(bare)
    _keep(_file(parts, classifier, name), attacked)
    left = np.logical_and.reduce(list(attacked.right.values())).mean()
    return f"{name} before {classifier}: {left:.1%} left, {sum(attacked.seconds.values()):.0f} s"


def _point(setting: Setting, classifier: str, name: str, eps: float, steps: int | None) -> tuple[Bool, Bool]:
    """One point of a curve, kept: images that stay right under attack, and under random noise [N]."""
    with one_thread():
        parts = _loaded(setting)
        key = fingerprint((setting.key(parts.weights), classifier, name, eps, steps))
        kept = setting.folder / "curves" / f"{key}.npy"
        if kept.exists():
            attacked, noisy = np.load(kept)
            return attacked, noisy
        attacker = parts.attacker(classifier, name, eps)
        found = np.stack([attacker.union(steps=steps), attacker.random_noise()])
    kept.parent.mkdir(parents=True, exist_ok=True)
    _save(kept, partial(np.save, arr=found))
    return found[0], found[1]


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


def _file(parts: Parts, classifier: str, name: str) -> Path:
    key = fingerprint((parts.setting.key(parts.weights), classifier, name))
    slug = "".join(c if c.isalnum() else "-" for c in name)
    return parts.setting.folder / "attacked" / f"{classifier}-{slug}-{key[:10]}.npz"


def _keep(file: Path, attacked: Attacked) -> None:
    arrays: dict[str, Any] = {"worst": attacked.worst}
    for name, right in attacked.right.items():
        arrays |= {f"right.{name}": right, f"seconds.{name}": np.float64(attacked.seconds[name])}
        if name in GRADIENT:
            arrays[f"images.{name}"] = attacked.images[name]
    file.parent.mkdir(parents=True, exist_ok=True)
    _save(file, lambda stream: np.savez_compressed(stream, **arrays))


def _save(file: Path, write: Callable[[Any], object]) -> None:
    stream = io.BytesIO()
    write(stream)
    replace_file(file, stream.getvalue())


def _read(file: Path) -> Attacked | None:
    """What was kept; None if it is not there or damaged."""
    with suppress(OSError, ValueError, KeyError, BadZipFile), np.load(file) as kept:
        arrays: dict[str, Any] = dict(kept)
        return Attacked(
            right=dict(_named(arrays, "right")),
            images=dict(_named(arrays, "images")),
            seconds={name: float(array) for name, array in _named(arrays, "seconds")},
            worst=arrays["worst"],
        )
    return None


def _named(arrays: Mapping[str, Any], group: str) -> Iterator[tuple[str, Any]]:
    for key, array in arrays.items():
        if key.startswith(f"{group}."):
            yield key.removeprefix(f"{group}."), array
