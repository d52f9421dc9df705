"""The sets that attacked images stay in, with the steps that suit them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

__all__ = ["Ball", "Box", "Norm", "Region", "ball_around"]

Norm = Literal["linf", "l2"]

_HALVINGS = 40  # of the search for the projection's factor; float32 tells no more apart
_INWARD = 1 - 2e-6  # a few roundings of the norm's float32 sum


class Region(Protocol):
    """A convex set of images for each of N samples."""

    def project(self, points: Tensor) -> Tensor:
        """The nearest points of the set [N, C, H, W]."""

    def direction(self, gradient: Tensor) -> Tensor:
        """Where a step of length one goes up a gradient [N, C, H, W]."""

    def random(self, noise: Tensor) -> Tensor:
        """Points of the set from uniform noise in [0, 1) [N, C, H, W]."""

    def rows(self, keep: Tensor) -> Region:
        """The sets of some samples."""


@dataclass(frozen=True)
class Box:
    """All images between two bounds [N, C, H, W]: an l_inf ball, cut with [0, 1]. Steps are signs."""

    lower: Tensor
    upper: Tensor

    def project(self, points: Tensor) -> Tensor:
        """See `Region`."""
        return points.clamp(self.lower, self.upper)

    def direction(self, gradient: Tensor) -> Tensor:
        """See `Region`."""
        return gradient.sign()

    def random(self, noise: Tensor) -> Tensor:
        """Uniform in the box."""
        return self.lower + (self.upper - self.lower) * noise

    def rows(self, keep: Tensor) -> Box:
        """See `Region`."""
        return Box(self.lower[keep], self.upper[keep])


@dataclass(frozen=True)
class Ball:
    """Images within an l2 distance of others [N, C, H, W] in [0, 1], and in [0, 1]. Steps have the l2 length one."""

    centre: Tensor
    radius: float

    def project(self, points: Tensor) -> Tensor:
        """The nearest images of the ball's and the cube's intersection.

        The conditions of Karush, Kuhn and Tucker give clamp(x + s (p - x)) with one factor s in [0, 1] an image, the
        largest that stays in the ball; its distance grows with s, so s is found by halving. Scaling to the ball and
        clamping afterwards, as is often done, ends inside, but nearer to the centre than it has to where pixels are
        black or white already.
        """
        move, radius = points - self.centre, self.radius * _INWARD
        low = torch.zeros(_per_sample(points), dtype=points.dtype, device=points.device)
        high = torch.ones_like(low)
        inside = _length(points.clamp(0.0, 1.0) - self.centre) <= radius
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            fits = _length((self.centre + middle * move).clamp(0.0, 1.0) - self.centre) <= radius
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        return (self.centre + torch.where(inside, 1.0, low) * move).clamp(0.0, 1.0)

    def direction(self, gradient: Tensor) -> Tensor:
        """See `Region`; zero where the gradient is. Scaled first, so that no square underflows."""
        largest = gradient.flatten(1).abs().amax(1).reshape(_per_sample(gradient))
        scaled = gradient / torch.where(largest > 0.0, largest, 1.0)
        return scaled / _length(scaled).clamp_min(1.0)

    def random(self, noise: Tensor) -> Tensor:
        """On the sphere in a uniformly distributed direction, cut with [0, 1]."""
        normal = torch.special.ndtri(noise.clamp(1e-6, 1 - 1e-6))
        return self.project(self.centre + self.radius * self.direction(normal))

    def rows(self, keep: Tensor) -> Ball:
        """See `Region`."""
        return Ball(self.centre[keep], self.radius)


def ball_around(images: Tensor, radius: float, norm: Norm) -> Region:
    """The ball of a norm around images [N, C, H, W] in [0, 1], cut with [0, 1]; the radius in pixels."""
    if norm == "l2":
        return Ball(images, radius)
    return Box((images - radius).clamp(0.0, 1.0), (images + radius).clamp(0.0, 1.0))


def _length(move: Tensor) -> Tensor:
    return move.flatten(1).square().sum(1).sqrt().reshape(_per_sample(move))


def _per_sample(like: Tensor) -> tuple[int, ...]:
    return (len(like), *[1] * (like.dim() - 1))
