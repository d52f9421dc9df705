"""One network's accuracy, clean and attacked, image by image, so that before and after can be compared in pairs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Bool, Int64
from s2ap_train.attacks.accuracy import Array, on_device
from s2ap_train.attacks.pgd import cross_entropy_sum, margin_sum, pgd
from s2ap_train.measures.predictions import Model, predictions
from s2ap_train.models.modes import device_of, evaluation_mode
from s2ap_train.statistics.paired import PairedDifference, paired_difference

CONDITIONS = ("clean", "fgsm", "pgd", "robust")
_BATCH = 256


@dataclass(frozen=True)
class BenchmarkAttack:
    """The attacks of a benchmark, all l_inf.

    Attributes:
        eps: Radius, pixels in [0, 1].
        steps: Steps of each run of PGD.
        restarts: Random starts of PGD; from each one run raises the cross-entropy and one the margin.
        step_size: Length of a step, pixels; None = 2.5 eps / steps.
        seed: Of the random starts.
    """

    eps: float
    steps: int = 20
    restarts: int = 3
    step_size: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no attack.

        Raises:
            RecipeError: If eps or the step is not positive, or a count is below one.
        """
        positive = (self.eps, 1.0 if self.step_size is None else self.step_size)
        if min(positive) <= 0 or not all(map(math.isfinite, positive)) or min(self.steps, self.restarts) < 1:
            raise RecipeError(
                f"this is no attack: {self}; eps and step_size must be above 0, steps and restarts from 1"
            )

    @property
    def length(self) -> float:
        """Length of a step, pixels."""
        return 2.5 * self.eps / self.steps if self.step_size is None else self.step_size


@dataclass(frozen=True)
class Benchmark:
    """What one network has right, image by image.

    Attributes:
        name: Of the network.
        attack: How it was attacked.
        images_sha256: Of the images and labels, so that only like is compared with like.
        predicted: Class of the clean image, int64 [N].
        clean: Right on the clean image, bool [N].
        fgsm: Right after one step of length eps from the image, bool [N].
        pgd: Right on the clean image and after every run of PGD on the cross-entropy, bool [N].
        robust: Right in the worst case of all of these and of PGD on the margin, bool [N].
    """

    name: str
    attack: BenchmarkAttack
    images_sha256: str
    predicted: Int64
    clean: Bool
    fgsm: Bool
    pgd: Bool
    robust: Bool

    @property
    def samples(self) -> int:
        """Number of images N."""
        return len(self.clean)

    @property
    def clean_accuracy(self) -> float:
        """Share of images right without attack."""
        return float(self.clean.mean())

    @property
    def fgsm_accuracy(self) -> float:
        """Share right under FGSM."""
        return float(self.fgsm.mean())

    @property
    def pgd_accuracy(self) -> float:
        """Share right on the clean image and after every run of PGD on the cross-entropy."""
        return float(self.pgd.mean())

    @property
    def robust_accuracy(self) -> float:
        """Share right whatever was tried: an upper bound of the robust accuracy."""
        return float(self.robust.mean())

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `correct` holds one bit an image, first image in the highest bit, as hexadecimal digits."""
        return {
            "name": self.name,
            "samples": self.samples,
            "images_sha256": self.images_sha256,
            "attack": asdict(self.attack),
            "clean_accuracy": self.clean_accuracy,
            "fgsm_accuracy": self.fgsm_accuracy,
            "pgd_accuracy": self.pgd_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "predicted": self.predicted.tolist(),
            "correct": {name: np.packbits(getattr(self, name)).tobytes().hex() for name in CONDITIONS},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Benchmark:
        """The benchmark that `to_json` wrote.

        Raises:
            RecipeError: If keys are missing, or the bits are not those of the number of images.
        """
        try:
            samples = int(document["samples"])
            bits = {name: _unpacked(document["correct"][name], samples) for name in CONDITIONS}
            attack = BenchmarkAttack(**document["attack"])
            predicted = np.array(document["predicted"], dtype=np.int64)
            found = cls(str(document["name"]), attack, str(document["images_sha256"]), predicted, **bits)
        except (KeyError, TypeError, ValueError) as error:
            raise RecipeError(f"this is no benchmark that s2ap-defend wrote ({error}); measure it again") from error
        if predicted.shape != (samples,):
            raise RecipeError(f"the benchmark of {found.name} has {samples} images, {predicted.size} predictions")
        if found.robust_accuracy != document.get("robust_accuracy"):
            raise RecipeError(
                f"the benchmark of {found.name} says robust accuracy {document.get('robust_accuracy')}, its images say "
                f"{found.robust_accuracy}; it was changed: measure it again"
            )
        return found


def measure_benchmark(
    model: Model,
    images: Array,
    labels: Array,
    *,
    eps: float,
    seed: int,
    steps: int = 20,
    restarts: int = 3,
    step_size: float | None = None,
    name: str = "model",
    batch_size: int = _BATCH,
) -> Benchmark:
    """Measure a network on clean images, under FGSM and under PGD with restarts.

    Goodfellow et al. 2015 (arXiv 1412.6572) and Madry et al. 2018 (arXiv 1706.06083); the margin as second objective
    because cross-entropy alone stalls where its gradient is small (Carlini and Wagner 2017, arXiv 1608.04644). The
    random starts depend on the seed and the position of an image only, so two networks that are measured alike are
    attacked from the same points. Images that are broken are not attacked again.

    Args:
        model: The network.
        images: float32 [N, C, H, W] in [0, 1].
        labels: int64 [N].
        eps: Radius, pixels.
        seed: Of the random starts.
        steps: Steps of each run of PGD.
        restarts: Random starts.
        step_size: Length of a step, pixels; None = 2.5 eps / steps.
        name: Of the network, for reports.
        batch_size: Images attacked at once; part of what decides the random starts.

    Raises:
        RecipeError: If there are no images, or the attack is none.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise RecipeError(f"a benchmark needs images with labels; found {len(images)} images and {len(labels)} labels")
    attack = BenchmarkAttack(eps=eps, steps=steps, restarts=restarts, step_size=step_size, seed=seed)
    all_images, all_labels = on_device(device_of(model), images, labels)
    parts: dict[str, list[Bool]] = {condition: [] for condition in CONDITIONS}
    with evaluation_mode(model):
        for start in range(0, len(all_images), batch_size):
            x, y = all_images[start : start + batch_size], all_labels[start : start + batch_size]
            for condition, right in _judge(model, x, y, attack, start).items():
                parts[condition].append(right.cpu().numpy())
    return Benchmark(
        name=name,
        attack=attack,
        images_sha256=images_sha256(images, labels),
        predicted=predictions(model, images, batch_size=batch_size).numpy(),
        **{condition: np.concatenate(rows) for condition, rows in parts.items()},
    )


def before_after(before: Benchmark, after: Benchmark) -> dict[str, PairedDifference]:
    """Paired differences after - before under each of `CONDITIONS`.

    Raises:
        RecipeError: If the two were not measured on the same images with the same attack.
    """
    for what, first, second in (
        ("the images", before.images_sha256[:12], after.images_sha256[:12]),
        ("the attack", before.attack, after.attack),
        ("the number of images", before.samples, after.samples),
    ):
        if first != second:
            raise RecipeError(
                f"{before.name} and {after.name} are not comparable: {what} differ, {first} and {second}; "
                "measure both on the same images with the same attack and seed"
            )
    return {name: paired_difference(getattr(before, name), getattr(after, name)) for name in CONDITIONS}


def images_sha256(images: Array, labels: Array) -> str:
    """SHA-256 over shape and values of float32 images and int64 labels: the identity of a set of images."""
    x = np.ascontiguousarray(torch.as_tensor(images).cpu().numpy(), dtype="<f4")
    y = np.ascontiguousarray(torch.as_tensor(labels).cpu().numpy(), dtype="<i8")
    return hashlib.sha256(f"{list(x.shape)}\n".encode() + x.tobytes() + y.tobytes()).hexdigest()


def _judge(model: Model, x: Tensor, y: Tensor, attack: BenchmarkAttack, first: int) -> dict[str, Tensor]:
    """Right under each condition, bool [N], of one batch whose first image has this number."""

    def right(attacked: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            return model(attacked).argmax(1) == labels

    clean = right(x, y)
    fgsm = right(pgd(model, x, y, eps=attack.eps, steps=1, step_size=attack.eps, random_start=False), y)
    standing = {"pgd": clean.clone(), "robust": clean & fgsm}
    for condition, objective in (("pgd", cross_entropy_sum), ("robust", margin_sum)):
        worst = standing[condition]
        for restart in range(attack.restarts):
            rows = worst.nonzero()[:, 0]
            if len(rows) == 0:
                break
            generator = torch.Generator().manual_seed(_start_seed(attack.seed, restart, first))
            noise = (2 * torch.rand(x.shape, generator=generator) - 1).to(x)  # of all images: a start does not move
            attacked = pgd(
                model,
                x[rows],
                y[rows],
                eps=attack.eps,
                steps=attack.steps,
                step_size=attack.length,
                start=(x + attack.eps * noise)[rows],
                objective=objective,
            )
            worst[rows] &= right(attacked, y[rows])
        standing["robust"] &= worst
    return {"clean": clean, "fgsm": fgsm, **standing}


def _start_seed(seed: int, restart: int, start: int) -> int:
    """A seed of its own for every restart and batch, whichever batches were skipped."""
    return int(np.random.SeedSequence([seed, restart, start]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _unpacked(digits: str, samples: int) -> Bool:
    packed = np.frombuffer(bytes.fromhex(digits), dtype=np.uint8)
    if samples < 1 or len(packed) != math.ceil(samples / 8):
        raise ValueError(f"{len(packed)} bytes of bits for {samples} images")
    return np.unpackbits(packed, count=samples).astype(np.bool_)
