"""What decides something that a recipe trains: one key for `prune`, `harden` and `score-model`."""

from __future__ import annotations

from collections.abc import Sequence

from s2ap_train.models import ModelTable
from s2ap_train.models.source import source_digest
from s2ap_train.storage.fingerprint import fingerprint
from s2ap_train.storage.parts import Key

__all__ = ["DECIDING", "training_key"]

DECIDING = ("train", "validation")
"""The splits that decide what is trained; nothing else of the data does."""

_VERSION = 3  # of what training does and its records say: parts that were stored under another are trained again


def training_key(data: str, *settings: object, network: ModelTable | None = None, needs: Sequence[Key] = ()) -> Key:
    """The key of something that is trained.

    Args:
        data: SHA-256 of the images and labels that decide it (`Splits.sha256`).
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
