"""HYDRA: pruning by scores that are trained against the attack."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from s2ap_train.pruning.score_pruning import ScorePruning


@dataclass(frozen=True)
class Hydra(ScorePruning):
    """Keep in every layer what has the largest trained scores, the same share of each.

    Sehwag et al. 2020 (arXiv 2002.10509): scores start at the scaled weights, so at first the mask is that of the
    largest weights, and learn by straight-through gradients. The result is meant to be fine-tuned.
    """

    method: Literal["hydra"] = field(default="hydra", kw_only=True)
