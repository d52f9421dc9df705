"""The recipe `photos`: filled in from the user's data, network and effort, where no recipe is named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from s2ap_defend.errors import RecipeError
from s2ap_train.calibration.possible import FEWEST, FEWEST_IN_A_BIN
from s2ap_train.calibration.settings import Detection
from s2ap_train.data import DataFacts
from s2ap_train.recipe.efforts import EFFORTS, Effort, Work

__all__ = ["default_network", "photos_tables"]

_BATCH = 64
_FORWARD_AND_BACKWARD = 3  # passes that a gradient costs, in forward passes
_LAST_SIDE = 8  # a juror's last blocks see about so many pixels a side
_LEAST_WIDTH = 8
_LEAST_SIDE = 4  # of images for our own network, which pools twice
_LEAST_SIDE_OF_JURORS = 2  # they pool once at least
_MOST_FACTOR = 4  # of a juror's last channels to its first
_JUROR_COST = 0.25
_HELD_OUT = {"validation": (8, 1000), "fit": (6, 2000), "calibration": (6, 2000)}
"""(share of the training part, at most): few images must do for the tables of the test as well."""


def default_network(facts: DataFacts) -> dict[str, Any]:
    """The network that is trained where the user brings none.

    Raises:
        RecipeError: If the images are too small for it.
    """
    _check_sides(facts, _LEAST_SIDE, "the network that is trained where you bring none with --model")
    if min(facts.image_shape[1:]) < 2 * _LAST_SIDE:
        return {"name": "small_cnn"}
    return {"name": "resnet18", "width": 0.25}


def photos_tables(
    facts: DataFacts,
    *,
    data: Mapping[str, Any],
    model: str | Mapping[str, Any],
    flops: int,
    trained_flops: int,
    effort: Effort,
    eps: float,
    answer: str,
    seed: int,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """The tables of the recipe, as a .toml file would hold them.

    Args:
        facts: Of the data.
        data: The table `data`, without the sizes of the held-out parts.
        model: The table `model`.
        flops: Of one image in that network.
        trained_flops: Of one image in the network that is trained adversarially.
        effort: How long it may take.
        eps: Attack budget, l_inf in [0, 1] pixels.
        answer: Who answers.
        seed: Of everything.
        given: The table `given`.

    Raises:
        RecipeError: If the images held out for validation and calibration leave a class without one to train on, or
            the images are too small for the jurors.
    """
    _check_sides(facts, _LEAST_SIDE_OF_JURORS, "each juror that is trained next to your network")
    work = EFFORTS[effort]
    held_out = {name: max(1, min(most, facts.training // share)) for name, (share, most) in _HELD_OUT.items()}
    trained = min(max(work.images, len(facts.classes)), _left_to_train_on(facts, sum(held_out.values())))
    attack = {"eps": eps, "attack_steps": work.attack_steps, "validation_steps": 5}
    dense_steps = _dense_steps(work, trained_flops)
    widths, pools = _juror_blocks(facts, flops, work)
    small = {"batch_size": work.small_batch, "weight_decay": 5e-4, "average_decay": 0.99, **_augmented(facts)}
    own = {"batch_size": _BATCH, "weight_decay": 5e-4, "average_decay": 0.99, **_augmented(facts)}

    def epochs(steps: float, batch: int = _BATCH) -> dict[str, int]:
        """As many as make so many steps, and how often they are judged."""
        count = max(1, min(work.passes, math.ceil(steps * batch / trained)))
        return {"epochs": count, "validate_every": max(1, count // 3)}

    def small_epochs(share: float) -> dict[str, int]:
        return epochs(share * work.small_steps, work.small_batch)

    def warmed(table: dict[str, int]) -> dict[str, int]:
        """From fresh weights: without a growing eps, few steps leave a network at chance."""
        return {**table, "eps_warmup_epochs": table["epochs"] // 2}

    natural: dict[str, Any] = {"loss": "natural", "eps": 0}
    fresh = given.get("start", "fresh") == "fresh"
    network = {"name": "small_cnn", "widths": widths, "pool_after": pools}
    robust_members = {
        "family": "pruned",
        "role": "juror",
        "count": work.jurors,
        "first_seed": 100,
        "models": [network],
        "pretraining": {**small, **attack, **warmed(small_epochs(1.0)), "lr": 0.02},
        "finetune": {**small, **attack, **small_epochs(0.5), "lr": 0.01},
        "pruning": {
            "method": "s2ap",
            "sparsity": 0.2,
            "s2ap": {"radius": "auto", "warmup_epochs": 0},
            "training": {**small, **attack, **small_epochs(0.2), "lr": 0.02, **_MASKS},
        },
    }
    sensors = {
        "family": "pruned",
        "role": "sensor",
        "count": work.sensors,
        "first_seed": 200,
        "models": [network],
        "pretraining": {**small, **natural, **small_epochs(1.0), "lr": 0.05},
        "finetune": {**small, **natural, **small_epochs(0.3), "lr": 0.02},
        "pruning": {"method": "magnitude", "sparsity": 0.5},
    }
    return {
        "name": "photos",
        "data": {**data, **held_out, "train_limit": trained},
        "seed": seed,
        "eps": eps,
        "classifier": "plain",
        "model": dict(model) if isinstance(model, Mapping) else model,
        "given": {
            **given,
            **({} if fresh else {"fresh": {**own, **attack, **warmed(epochs(2 * dense_steps)), "lr": 0.1}}),
        },
        "plain": {**own, **natural, **epochs(2 * dense_steps), "lr": 0.05},
        "adversarial": {
            **own,
            **attack,
            **(warmed(epochs(dense_steps)) if fresh else epochs(dense_steps)),
            "lr": 0.05 if fresh else 0.02,
        },
        "pruning": {
            "method": "s2ap",
            "base": "hydra",
            "sparsity": 0.5,
            "s2ap": {"radius": "auto", "warmup_epochs": 0},
            "training": {**own, **attack, **epochs(0.3 * dense_steps), "lr": 0.1, **_MASKS},
        },
        "finetune": {**own, **attack, **epochs(0.6 * dense_steps), "lr": 0.02},
        "members": {"jurors": robust_members, "sensors": sensors},
        "score_model": {"size": "fast", **_score_epochs(work, trained), "flip": _photos(facts)},
        "purifier": _purifier(facts, eps),
        "decision": {
            "answer": answer,
            "juror_weight": 0.25,
            "opening": 4,
            "purify": "off",
            "sensors_see": "nothing",
            "signals": ["jury margin"],
        },
        "decision_choice": _choice(work, effort),
        "detection": {"alpha": 0.05, "beta": 0.05, "min_accept": 4, **_bins(held_out["fit"])},
        "evaluation": {"samples": work.evaluated, "budget": work.budget},
    }


_MASKS = {"weight_decay": 0.0, "average_decay": 0.0}  # the scores of a mask are no weights


def _check_sides(facts: DataFacts, least: int, what: str) -> None:
    _, height, width = facts.image_shape
    if min(height, width) < least:
        larger = f"{max(height, 2 * least)}x{max(width, 2 * least)}"
        raise RecipeError(
            f"the images are {width}x{height} pixels, and {what} needs {least} or more a side; enlarge them with "
            f"--image-size, such as {larger} (HEIGHTxWIDTH), or bring larger ones"
        )


def _bins(fit: int) -> dict[str, int]:
    """Fewer bins of evidence than by default where there are few fitting images."""
    return {"bins": fit // FEWEST_IN_A_BIN} if FEWEST <= fit < FEWEST_IN_A_BIN * Detection().bins else {}


def _dense_steps(work: Work, flops: int) -> int:
    """Gradient steps of the classifier's adversarial training that the effort's operations allow."""
    step = _FORWARD_AND_BACKWARD * (work.attack_steps + 1) * _BATCH * max(flops, 1)
    return max(work.least, min(work.most, round(work.flops / step)))


def _juror_blocks(facts: DataFacts, flops: int, work: Work) -> tuple[list[int], list[int]]:
    """Channels of a juror's blocks and the blocks that pool: at most a quarter of the classifier's cost."""
    from s2ap_train.models import create
    from s2ap_train.models.cost import flops as cost

    side = min(facts.image_shape[1:])
    pools = max(1, round(math.log2(max(2.0, side / _LAST_SIDE))))

    def widths(first: int) -> list[int]:
        grown = [first * min(_MOST_FACTOR, 2 ** ((block + 1) // 2)) for block in range(pools + 2)]
        return [first, *grown[1:]]

    def affordable(first: int) -> bool:
        table = {"name": "small_cnn", "widths": widths(first), "pool_after": list(range(pools))}
        return cost(create(table, facts.image_shape, len(facts.classes)), facts.image_shape) <= _JUROR_COST * flops

    candidates = range(work.juror_width, _LEAST_WIDTH, -4)
    first = next((width for width in candidates if affordable(width)), _LEAST_WIDTH)
    return widths(first), list(range(pools))


def _photos(facts: DataFacts) -> bool:
    """Whether images are large enough to be of things, which may be mirrored and shifted; digits may not."""
    return min(facts.image_shape[1:]) >= 32 and facts.image_shape[0] == 3


def _augmented(facts: DataFacts) -> dict[str, Any]:
    return {"flip": True, "shift": max(1, min(facts.image_shape[1:]) // 16)} if _photos(facts) else {}


def _left_to_train_on(facts: DataFacts, held_out: int) -> int:
    """Training images behind those that are held out, one of each class at least."""
    left, classes = facts.training - held_out, len(facts.classes)
    if left < classes:
        share = 1.0 - sum(1.0 / one for one, _ in _HELD_OUT.values())
        raise RecipeError(
            f"{facts.training} images leave {left} for the training of {classes} classes behind validation, fitting "
            f"and calibration; bring {math.ceil(classes / share)} or more"
        )
    return left


def _score_epochs(work: Work, trained: int) -> dict[str, Any]:
    epochs = max(1, min(2 * work.passes, math.ceil(work.score_steps * _BATCH / trained)))
    width = {} if work.score_width is None else {"width": work.score_width}
    return {"epochs": epochs, **width, "batch_size": _BATCH, "lr": 2e-3, "sigma_min": 0.03, "sigma_max": 0.6}


def _purifier(facts: DataFacts, eps: float) -> dict[str, Any]:
    """The fast profile: one step over two noise directions, in a ball of twice eps."""
    numbers = math.prod(facts.image_shape)
    return {
        "sigma": 0.125,
        "radius": 2 * eps,
        "steps": 1,
        "step_size": 1.0,
        "rho": 0.17 * eps * math.sqrt(numbers),
        "bank_size": 2,
    }


def _choice(work: Work, effort: Effort) -> dict[str, Any]:
    """Which decisions are compared: few where it must be quick."""
    table: dict[str, Any] = {"samples": work.samples, "steps": work.steps}
    if effort == "quick":
        few = {"jury_shares": [0.8, 1.0], "amplifications": [3.0], "juror_weights": [0.25]}
        none: dict[str, list[str]] = {"opening": [], "jurors_see": [], "signals": [], "flagged_label": []}
        return {**table, "targets": 1, **few, **none, "sensors_see": ["purified"], "purify": ["suspicious"]}
    if effort == "standard":
        return {**table, "targets": 1, "opening": [2], "jurors_see": [], "purify": ["suspicious"]}
    return {**table, "targets": 2}
