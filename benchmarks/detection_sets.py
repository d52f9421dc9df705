"""Attacked images of the detection benchmark, each set stored in the work folder as soon as it is made."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from s2ap_defend.types import Float32, Int64
from s2ap_train import attacks
from s2ap_train.attacks.catalogue import ATTACKS
from s2ap_train.attacks.joint import joint_network
from s2ap_train.attacks.pgd import pgd
from s2ap_train.data import ImageSet
from s2ap_train.jobs import SECONDS, Found, Store
from s2ap_train.storage.fingerprint import weights_digest

PGD_STEPS = 20
RELATIVE_STEP = 0.25
BATCH = 200


@dataclass(frozen=True)
class AttackedSet:
    """Attacked images with their true labels and what the attack cost.

    Attributes:
        images: [N, C, H, W] in [0, 1].
        labels: True labels [N].
        seconds: Time that the attack took.
    """

    images: Float32
    labels: Int64
    seconds: float


class AttackedSets:
    """Makes attacked sets of the same clean images, or reads those of the same networks and settings again.

    Args:
        folder: Where they are stored.
        data: Clean images and labels.
        seed: Of the attacks.
    """

    def __init__(self, folder: Path, data: ImageSet, seed: int) -> None:
        self._data, self._seed = data, seed
        images = hashlib.sha256(data.images.tobytes() + data.labels.tobytes()).hexdigest()
        self._store = Store(folder, (images, seed, _attacks_digest()))

    def named(self, name: str, base: nn.Module, **parameters: float) -> AttackedSet:
        """An attack of the catalogue on the bare base."""
        attack = ATTACKS[name]
        return self._made(
            name,
            (base,),
            parameters,
            lambda data: attack(base, data.images, data.labels, seed=self._seed, **parameters),
        )

    def pgd(self, name: str, base: nn.Module, members: Sequence[nn.Module], eps: float) -> AttackedSet:
        """PGD on the base, and on base and members together where there are any."""
        network = joint_network(base, members)
        generator = torch.Generator().manual_seed(self._seed)

        def attack(data: ImageSet) -> Float32:
            x, y = torch.from_numpy(data.images), torch.from_numpy(data.labels)
            step = RELATIVE_STEP * eps
            attacked = pgd(network, x, y, eps=eps, steps=PGD_STEPS, step_size=step, generator=generator)
            return np.asarray(attacked.numpy(), dtype=np.float32)

        return self._made(name, (base, *members), {"eps": eps, "steps": PGD_STEPS}, attack)

    def _made(
        self, name: str, networks: Sequence[nn.Module], settings: object, attack: Callable[[ImageSet], Float32]
    ) -> AttackedSet:
        decides = (name, weights_digest(networks), settings)
        found = self._store.load(decides)
        if found is None:
            began = time.perf_counter()
            starts = range(0, len(self._data), BATCH)
            images = [attack(self._data.subset(slice(start, start + BATCH))) for start in starts]
            found = Found(np.concatenate(images), {SECONDS: time.perf_counter() - began})
            self._store.save(decides, found)
        return AttackedSet(found.images, self._data.labels, found.notes[SECONDS])


@cache
def _attacks_digest() -> str:
    """SHA-256 over the sources of the attacks: what was attacked by other code is attacked again."""
    files = sorted(Path(attacks.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
