"""All attacks of the red team by name, and the presets that choose among them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

from s2ap_defend.errors import RecipeError
from s2ap_train.redteam.attacks.attack import RedTeamAttack
from s2ap_train.redteam.attacks.black_box import ATTACKS as BLACK_BOX
from s2ap_train.redteam.attacks.controls import ATTACKS as CONTROLS
from s2ap_train.redteam.attacks.cross_checks import ATTACKS as CROSS_CHECKS
from s2ap_train.redteam.attacks.oblivious import ATTACKS as OBLIVIOUS
from s2ap_train.redteam.attacks.oblivious import SEARCH
from s2ap_train.redteam.attacks.other_norms import ATTACKS as OTHER_NORMS
from s2ap_train.redteam.attacks.own import is_own, own_attack
from s2ap_train.redteam.attacks.transfer import ATTACKS as TRANSFER
from s2ap_train.redteam.attacks.white_box import ATTACKS as WHITE_BOX

__all__ = ["ATTACKS", "PRESETS", "Preset", "attack_named", "chosen_attacks"]

Preset = Literal["quick", "standard", "full"]

_FOUND = [*CONTROLS, *OBLIVIOUS, *OTHER_NORMS, *TRANSFER, *BLACK_BOX, *WHITE_BOX, *CROSS_CHECKS]
_IN_THE_BALL = tuple(attack.name for attack in _FOUND if attack.norm == "linf")

ATTACKS: Mapping[str, RedTeamAttack] = MappingProxyType(
    {attack.name: attack for attack in [*_FOUND, replace(SEARCH, after=_IN_THE_BALL)]}
)
"""By name, in the order in which they are reported: by what the attacker knows, the search over all of them last."""

_QUICK = (
    "noise",
    "fgsm",
    "pgd",
    "square",
    "apgd-ce",
    "agreement",
    "bypass",
    "jury",
    SEARCH.name,
)
_ONLY_FULL = ("cw-l2", "autoattack")

PRESETS: Mapping[Preset, tuple[str, ...]] = MappingProxyType(
    {
        "quick": _QUICK,
        "standard": tuple(
            name
            for name, attack in ATTACKS.items()
            if attack.needs not in {"server", "library"} and name not in _ONLY_FULL
        ),
        "full": tuple(name for name, attack in ATTACKS.items() if attack.needs != "server"),
    }
)
"""Attacks of each preset; 'full' has all but those that need a server, and with one every preset has those as well."""


def chosen_attacks(text: str, *, server: bool = False) -> tuple[Preset | None, tuple[RedTeamAttack, ...]]:
    """(the preset, None where attacks were named; its attacks, in the order of the catalogue).

    Args:
        text: A preset, or names of attacks with commas between them; 'clean' is no attack and may be named, alone too.
            A user's own attacks, named as package.module:function, may follow either.
        server: Whether there is a server to attack: then a preset has the attacks over HTTP as well.

    Raises:
        RecipeError: If nothing is named, a name is not known, or a preset does not stand alone.
    """
    named = [name.strip() for name in text.split(",") if name.strip()]
    if not named:
        raise RecipeError(f"no attack is named; name a preset ({', '.join(PRESETS)}), or attacks such as fgsm,pgd")
    asked = [name for name in named if not is_own(name)]
    own = tuple(own_attack(name) for name in dict.fromkeys(named) if is_own(name))
    for preset, names in PRESETS.items():
        if asked == [preset]:
            of_preset = {*names, *(name for name, attack in ATTACKS.items() if server and attack.needs == "server")}
            return preset, _with_own(of_preset, own)
    known = [*ATTACKS, *PRESETS, "clean"]
    for name in asked:
        if name in PRESETS:
            raise RecipeError(f"a preset stands alone; name {name!r} without other attacks, or leave it out")
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {nearest[0]}? " if nearest else ""
            raise RecipeError(
                f"attack {name!r} is not known; {hint}there are {', '.join(known)}, and your own as "
                "package.module:function"
            )
    return None, _with_own({*asked}, own)


def attack_named(name: str) -> RedTeamAttack:
    """The attack of that name, be it a user's own.

    Raises:
        RecipeError: If it is a user's and cannot be imported.
    """
    return own_attack(name) if is_own(name) else ATTACKS[name]


def _with_own(names: set[str], own: tuple[RedTeamAttack, ...]) -> tuple[RedTeamAttack, ...]:
    """The named attacks in the order of the catalogue, a user's own before the search, which starts from theirs too."""
    chosen = [attack for name, attack in ATTACKS.items() if name in names and name != SEARCH.name]
    in_the_ball = tuple(attack.name for attack in own if attack.norm == "linf")
    search = ATTACKS[SEARCH.name]
    last = (replace(search, after=(*search.after, *in_the_ball)),) if SEARCH.name in names else ()
    return (*chosen, *own, *last)
