"""What decides something that a recipe trains: one key for `prune`, `harden` and `score-model`."""

from __future__ import annotations

from collections.abc import Sequence

from s2ap_train.data import Splits
from s2ap_train.models import ModelTable
from s2ap_train.models.source import source_digest
from s2ap_train.storage.fingerprint import fingerprint
from s2ap_train.storage.parts import Key

__all__ = ["data_digest", "training_key"]

_DECIDING = ("train", "validation")  # no other subset decides what is trained

_VERSION = 3  # of what training does and its records say: parts that were stored under another are trained again


def data_digest(splits: Splits, *, labels: bool = True, measured: bool = False) -> str:
    """Digest of the images that decide what is trained, their labels, shape and number of classes.

    Args:
        splits: The data; training and validation images count.
        labels: Whether labels and the number of classes count.
        measured: Whether the other subsets and the names of the classes count as well.
    """
    if measured:
        return fingerprint((splits.digests, splits.image_shape, splits.classes))
    digests = [splits.digests[name] for name in _DECIDING]
    if labels:
        return fingerprint((digests, splits.image_shape, len(splits.classes)))
    return fingerprint(([images for images, _ in digests], splits.image_shape))


def training_key(data: str, *settings: object, network: ModelTable | None = None, needs: Sequence[Key] = ()) -> Key:
    """The key of something that is trained.

    Args:
        data: Digest of the images and labels that decide it.
        settings: Everything else that decides it: settings, seeds, precision.
        network: What it is made of; the source of a user's network is part of the key.
        needs: Keys of the parts that it starts from.
    """
    return Key(
        settings=fingerprint((_VERSION, network, settings)),
        data=data,
        code="" if network is None else source_digest(network),
        needs=fingerprint([key.text for key in needs]) if needs else "",
    )
