"""Which attacks an evaluation can run, and why the others were not run, or not on every image."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence

from s2ap_train.redteam.attacks.attack import RedTeamAttack
from s2ap_train.redteam.attacks.cross_checks import MODULES
from s2ap_train.redteam.campaign import SKIPPED_SHARDS, Attacked, Setup

__all__ = ["able", "unfinished"]


def able(attacks: Sequence[RedTeamAttack], setup: Setup) -> tuple[tuple[RedTeamAttack, ...], dict[str, str]]:
    """(attacks that have what they need, why the others have not)."""
    missing = {}
    for attack in attacks:
        if attack.needs == "surrogates" and not setup.surrogates:
            missing[attack.name] = "there are no networks of the attacker's own; --ablation all trains them"
        elif attack.needs == "server" and setup.server is None:
            missing[attack.name] = "it asks a server; give its address with --server"
        elif attack.needs == "library" and importlib.util.find_spec(MODULES[attack.name]) is None:
            missing[attack.name] = "its library is not installed; pip install '.[train,crosscheck]' in a checkout"
    return tuple(attack for attack in attacks if attack.name not in missing), missing


def unfinished(attacks: Mapping[str, RedTeamAttack], found: Mapping[str, Attacked], samples: int) -> dict[str, str]:
    """Why attacks were not run on all images, by name; those that were are not there."""
    left = {name: "the time limit was over before it began" for name in attacks if name not in found}
    for name, one in found.items():
        if SKIPPED_SHARDS in one.notes:
            left[name] = f"only on {int(one.ran.sum())} of {samples} images: {one.notes[SKIPPED_SHARDS]}"
        elif not one.ran.all():
            left[name] = f"the time limit was over after {int(one.ran.sum())} of {samples} images"
    return left
