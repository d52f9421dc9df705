"""What the answers that there are allow of the settings of a test, and what is taken instead of what they do not."""

from __future__ import annotations

from dataclasses import replace

from s2ap_defend.errors import RecipeError
from s2ap_train.calibration.answers import Answers
from s2ap_train.calibration.boundaries import conformal_rank, least_alpha
from s2ap_train.calibration.kinds import shared_rates
from s2ap_train.calibration.settings import Detection
from s2ap_train.calibration.weakness import OnWeakness, Weakness

__all__ = ["FEWEST", "FEWEST_IN_A_BIN", "MOST_RAISED", "able", "affordable_alpha", "has_evidence", "without_kind"]

FEWEST = 20
"""Inputs of either kind that evidence is fitted on."""
FEWEST_IN_A_BIN = 5
"""Fitting images for each bin of evidence (Cochran 1952)."""
MOST_RAISED = 0.2
"""The largest false-alarm rate that is taken unasked: beyond it a file without alarms is of more use."""


def has_evidence(right: Answers, fooled: Answers, weak: OnWeakness) -> bool:
    """Whether there are enough inputs of both kinds to fit evidence on.

    Args:
        right: Clean inputs that are answered right.
        fooled: Attacked ones that are answered wrong.
        weak: Called if not.
    """
    if len(right) >= FEWEST and len(fooled) >= FEWEST:
        return True
    weak(
        Weakness(
            part="evidence",
            found=f"calibration needs {FEWEST} clean inputs that are answered right and {FEWEST} attacked ones that "
            f"are answered wrong, got {len(right)} and {len(fooled)}",
            instead="no evidence was fitted and nothing is flagged",
            cure="give more fitting images (data.fit), or attack with a larger eps",
        )
    )
    return False


def able(config: Detection, right: Answers, fooled: Answers, weak: OnWeakness) -> Detection:
    """The settings, of kind 'conformal' where the kind takes shared rates and the answers give none.

    Args:
        config: As they are wanted.
        right: Clean inputs that are answered right.
        fooled: Attacked ones that are answered wrong.
        weak: Called if the kind is another.
    """
    try:
        shared_rates(config, right, fooled)
    except RecipeError as error:
        weak(Weakness.of(error, "evidence", f"the test is of kind 'conformal' instead of {config.kind!r}"))
        return without_kind(config)
    return config


def without_kind(config: Detection) -> Detection:
    """The settings under kind 'conformal' with its own truncation, which work with any evidence, and with none."""
    return replace(config, kind="conformal", truncation=None)


def affordable_alpha(config: Detection, samples: int, weak: OnWeakness) -> float | None:
    """The false-alarm rate that a boundary can keep; None: none that is of use, so there is no alarm boundary.

    Args:
        config: The settings; only kind 'conformal' depends on the number of inputs.
        samples: Calibration inputs that count.
        weak: Called if it is not the one of the settings.
    """
    if config.kind != "conformal":
        return config.alpha
    try:
        conformal_rank(samples, config.alpha)
    except RecipeError as error:
        raised = least_alpha(samples)
        usable = raised <= MOST_RAISED and raised + config.beta < 1.0
        weak(Weakness.of(error, "boundary", f"alpha is {raised:g}" if usable else "nothing is flagged"))
        return raised if usable else None
    return config.alpha
