"""A user's own attack, named as package.module:function: it joins an evaluation like those of the catalogue."""

from __future__ import annotations

import hashlib
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from s2ap_defend.errors import DefendError, RecipeError
from s2ap_train.jobs import Found
from s2ap_train.models.named_object import named_object
from s2ap_train.redteam.attacks.attack import RedTeamAttack, Task
from s2ap_train.redteam.target import Target

__all__ = ["is_own", "own_attack"]

_EXPECTED = "a function of (target, task) that returns images, or a RedTeamAttack"


def is_own(name: str) -> bool:
    """Whether an attack is named as package.module:function."""
    return ":" in name


def own_attack(name: str) -> RedTeamAttack:
    """The attack of a user; importing it runs the code of its module.

    A function is taken for an attacker in the l_inf ball that knows everything and wants an answer that is wrong and
    not flagged; a `RedTeamAttack` says these itself. It is made on the defended file alone, unless it says otherwise.

    Args:
        name: "package.module:function"; the module is searched in the current folder first.

    Raises:
        RecipeError: If there is no such function.
    """
    found = named_object(name, "attack", _EXPECTED)
    digest = _digest_of(name)
    if isinstance(found, RedTeamAttack):
        attack = found
    elif callable(found):
        said = (inspect.getdoc(found) or "what its author made it do").partition("\n\n")[0]
        attack = RedTeamAttack(
            name=name,
            run=found,
            goal="mislead",
            knows="everything",
            norm="linf",
            assumes=" ".join(said.split()).rstrip("."),
            source=f"own, SHA-256 of its module {digest[:12]}",
            needs_test=True,
        )
    else:
        raise RecipeError(f"attack {name} is a {type(found).__name__}, expected {_EXPECTED}")
    return replace(attack, name=name, run=partial(_checked, name, attack.run), version=digest)


def _digest_of(name: str) -> str:
    """SHA-256 of the file of a module that was imported; other modules that it imports are not in it."""
    file = getattr(sys.modules[name.partition(":")[0]], "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file is not None else ""


def _checked(name: str, function: Callable[[Target, Task], object], target: Target, task: Task) -> Found:
    """What a user's attack found, images that can be judged."""
    try:
        found = function(target, task)
    except DefendError:
        raise
    except Exception as error:  # whatever the user's code raises
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise RecipeError(
            f"attack {name} failed with {type(error).__name__}: {error} ({last.filename}, line {last.lineno}); correct "
            "it and run the same command again, what other attacks found is stored"
        ) from error
    notes = dict(found.notes) if isinstance(found, Found) else {}
    images = found.images if isinstance(found, Found) else found
    images = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
    wanted = task.data.images.shape
    if not isinstance(images, np.ndarray) or images.shape != wanted or not np.isfinite(images).all():
        what = f"an array {list(images.shape)}" if isinstance(images, np.ndarray) else f"a {type(images).__name__}"
        raise RecipeError(
            f"attack {name} returned {what}, expected an array or tensor {list(wanted)} of finite numbers, an image "
            "for each of the task, the clean one where nothing was found"
        )
    return Found(images.astype(np.float32), notes)
