"""HopSkipJump: an attack that sees decisions only, and looks for the nearest image with which it wins."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.types import Bool, Float32, Float64, Int64
from s2ap_train.attacks.budget import distortion, project
from s2ap_train.attacks.from_foolbox import foolbox_model, quiet_import

__all__ = ["Decision", "Nearest", "hop_skip_jump"]

Decision = Callable[[Float32, Int64], Bool]
"""Images [M, C, H, W] and the row of `images` that each was made of [M] -> whether the attacker has won [M]."""

_NUMBERS_AT_ONCE = 2**25
"""Of the noise that estimates one gradient: 128 MB in float32."""
_INWARD = 1 - 1e-5  # so that no rounding of the distance puts an image outside


@dataclass(frozen=True)
class Nearest:
    """What the search found, per image.

    Attributes:
        images: The nearest image that won, float32 [N, C, H, W]; the clean one where there was no start.
        distance: Its distance from the clean image [N], pixels in [0, 1]; inf where there was no start.
        queries: Questions that were asked about the image [N].
    """

    images: Float32
    distance: Float64
    queries: Int64


def hop_skip_jump(
    decision: Decision,
    images: Float32,
    starts: Float32,
    *,
    norm: Literal["linf", "l2"],
    queries: int,
    seed: int,
    radius: float | None = None,
) -> Nearest:
    """The nearest winning images that a walk along the border of the decision found.

    Chen et al. 2020, algorithm 2 (arXiv 1904.02144), as in foolbox. All images walk side by side until the first of
    those that are still walking has spent its questions, however the walk stands then; what counts is every image that
    was asked about, not only the ends of the library's steps. A question that was asked before is answered from memory,
    so that a server that answers twice in two ways cannot stop the walk.

    Args:
        decision: What is asked; nothing else is known of the system.
        images: Clean images, float32 [N, C, H, W] in [0, 1].
        starts: An image for each, with which the attacker wins; one that does not win is not walked from.
        norm: In which the nearest is sought.
        queries: Questions per image, at the most.
        seed: Of the walk.
        radius: An image that won within this distance walks no further; None: all walk to the end.

    Raises:
        ValueError: If no question is allowed.
    """
    if queries < 1:
        raise ValueError(f"hop_skip_jump needs at least one query, found {queries}")
    found, distance = images.copy(), np.full(len(images), np.inf)
    asked = np.zeros(len(images), dtype=np.int64)
    for rows in _batches(len(images), images[0].size if len(images) else 1, queries):
        walk = _Walk(decision, images, starts, rows, norm=norm, queries=queries, radius=radius)
        if walk.started.any():
            walk.run(seed + int(rows[0]))
        found[rows], distance[rows], asked[rows] = walk.best, walk.distance, walk.asked
    return Nearest(found, distance, asked)


def gradient_questions(queries: int) -> int:
    """Questions of the first gradient: a twenty-fifth, at least 8; the paper's 100 from 2,500 questions on."""
    return max(8, min(100, queries // 25))


def _batches(count: int, size: int, queries: int) -> list[Int64]:
    """Rows in batches whose noise fits into memory; late gradients ask some four times as many questions."""
    at_once = max(1, _NUMBERS_AT_ONCE // (4 * gradient_questions(queries) * size))
    return [np.arange(start, min(start + at_once, count)) for start in range(0, count, at_once)]


class _SpentError(Exception):
    """The walk has used its questions, or has nothing left to do."""


class _Walk:
    """The images of one batch on their way, and the answers that they got."""

    def __init__(
        self,
        decision: Decision,
        images: Float32,
        starts: Float32,
        rows: Int64,
        *,
        norm: Literal["linf", "l2"],
        queries: int,
        radius: float | None,
    ) -> None:
        self._decision, self._norm, self._queries, self._radius = decision, norm, queries, radius
        self._rows = rows
        self._clean = images[rows]
        self._memory: dict[tuple[int, bytes], bool] = {}
        self._rounds = 0
        self._walking = np.arange(len(rows))  # places in `rows` that the library walks
        self.best = self._clean.copy()
        self.distance = np.full(len(rows), np.inf)
        self.asked = np.zeros(len(rows), dtype=np.int64)
        self._starts = starts[rows]
        self.started: Bool = self._ask(self._clean, self._walking) | self._ask(self._starts, self._walking)
        # an image that wins as it is has distance 0 and nowhere to go
        self._walking = np.flatnonzero(self.started & (self.distance > 0.0))

    def run(self, seed: int) -> None:
        """Walk until the questions are spent."""
        if len(self._walking) == 0 or self._queries < 3:
            return
        with quiet_import():
            from foolbox.attacks.hop_skip_jump import HopSkipJumpAttack
        from foolbox.criteria import Misclassification

        attack: Any = HopSkipJumpAttack(
            steps=self._queries, initial_gradient_eval_steps=gradient_questions(self._queries), constraint=self._norm
        )
        model = foolbox_model(self._answer, "cpu")
        clean, start = (torch.from_numpy(x[self._walking]) for x in (self._clean, self._starts))
        right = torch.zeros(len(clean), dtype=torch.int64)
        with torch.random.fork_rng(
            devices=[]
        ):  # the library draws from the global generator: it is given back untouched
            torch.manual_seed(seed)
            try:
                attack.run(model, clean, Misclassification(right), starting_points=start)
            except _SpentError:
                return

    def _answer(self, images: Tensor) -> Tensor:
        """Logits [M, 2] of the walking images: the second is larger where the attacker wins."""
        open_rows = ~self._arrived[self._walking]
        self._rounds += 1  # of questions to all, those that memory answers included: a walk that stands still ends, too
        spent = self._rounds > 2 * self._queries or self.asked[self._walking][open_rows].max(initial=0) >= self._queries
        if spent or not open_rows.any():
            raise _SpentError
        won = np.ones(len(images), dtype=bool)  # those that arrived need no answer
        places = np.flatnonzero(open_rows)
        won[places] = self._ask(images.numpy()[places], self._walking[places])
        signed = torch.from_numpy(np.where(won, 1.0, -1.0).astype(np.float32))
        return torch.stack([torch.zeros_like(signed), signed], dim=1)

    @property
    def _arrived(self) -> Bool:
        """Images that won within the radius, so exactly that projection would not move them."""
        if self._radius is None:
            return np.zeros(len(self._rows), dtype=bool)
        if self._norm == "l2":
            return np.asarray(self.distance <= self._radius * _INWARD)
        still = (project(self.best, self._clean, self._radius) == self.best).all(axis=(1, 2, 3))
        return np.asarray(still & np.isfinite(self.distance))

    def _ask(self, images: Float32, places: Int64) -> Bool:
        """Whether the attacker wins with images made of some rows; asks what was not asked before."""
        digests = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
        new = np.array([(int(p), d) not in self._memory for p, d in zip(places, digests, strict=True)], dtype=bool)
        if new.any():
            answers = self._decision(images[new], self._rows[places[new]])
            self.asked[places[new]] += 1
            keys = [(int(places[i]), digests[i]) for i in np.flatnonzero(new)]
            self._memory.update(zip(keys, answers.tolist(), strict=True))
            if answers.any():
                self._note(images[new][answers], places[new][answers])
        return np.array([self._memory[int(p), d] for p, d in zip(places, digests, strict=True)], dtype=bool)

    def _note(self, images: Float32, places: Int64) -> None:
        linf, l2, _ = distortion(self._clean[places], images)
        distance = linf if self._norm == "linf" else l2
        nearer = distance < self.distance[places]
        self.best[places[nearer]], self.distance[places[nearer]] = images[nearer], distance[nearer]
