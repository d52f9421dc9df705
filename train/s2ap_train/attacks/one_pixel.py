"""One-pixel attack: differential evolution of the positions and values of a few pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.types import Float32, Int64
from s2ap_train.attacks.right_images import Classifier, attack_right_images
from s2ap_train.attacks.square import Score

_Judge = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Images [M, C, H, W] and labels [M] -> (fitness: the lower, the nearer to success; success), both [M]."""

_QUERIES_AT_ONCE = 2048
_IMAGES_AT_ONCE = 64


def one_pixel(
    classifier: Classifier,
    images: Float32,
    labels: Int64,
    *,
    seed: int,
    pixels: int = 3,
    population: int = 400,
    generations: int = 100,
    factor: float = 0.5,
    batch_size: int = _IMAGES_AT_ONCE,
) -> Float32:
    """Attacked images [N, C, H, W] of which at most `pixels` positions changed.

    Su et al. 2019, section 3 (arXiv 1710.08864): a candidate lists row, column and C values of each pixel; the first
    ones are uniform in position and normal in value; every generation each candidate meets one child (`children`)
    and the one that leaves the label less probability survives. An image is done as soon as a candidate is
    misclassified; one that never is comes back with its best candidate.

    Args:
        classifier: Images [N, C, H, W] in [0, 1] -> logits [N, K]; only asked, no gradient is used.
        images: Clean images, float32 [N, C, H, W] in [0, 1].
        labels: True labels, int64 [N].
        seed: Of the evolution.
        pixels: Positions that may change.
        population: Candidates per image.
        generations: Generations at most.
        factor: Scale F of the difference of two candidates.
        batch_size: Images attacked side by side.

    Raises:
        InputError: If images and labels are not as stated.
        ValueError: If the population is below 4 or another count below one.
    """
    _check(population, pixels, generations)
    generator = torch.Generator().manual_seed(seed)

    def judge(asked: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            answers = classifier(asked).softmax(1)
        return answers.gather(1, label[:, None])[:, 0], answers.argmax(1) != label

    def attack(x: Tensor, y: Tensor) -> Tensor:
        return _evolve(judge, x, y, pixels, population, generations, factor, generator)

    return attack_right_images(classifier, images, labels, attack, batch_size=batch_size)


def pixel_search(
    score: Score,
    images: Float32,
    labels: Int64,
    *,
    seed: int,
    pixels: int,
    population: int,
    generations: int,
    factor: float = 0.5,
    batch_size: int = _IMAGES_AT_ONCE,
) -> Float32:
    """Attacked images [N, C, H, W] after the evolution of `one_pixel` with any score as the fitness.

    Images that score below 0 stay as they are. An image is asked about 1 + population * (generations + 1) times at
    the most.

    Args:
        score: What the attacker lowers; below 0 it has won.
        images: Clean images, float32 [N, C, H, W] in [0, 1].
        labels: True labels, int64 [N].
        seed: Of the evolution.
        pixels: Positions that may change.
        population: Candidates per image.
        generations: Generations at most, the first apart.
        factor: Scale F of the difference of two candidates.
        batch_size: Images attacked side by side.

    Raises:
        ValueError: As `one_pixel`.
    """
    _check(population, pixels, generations)
    generator = torch.Generator().manual_seed(seed)

    def judge(asked: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        found = torch.from_numpy(score(asked.numpy(), label.numpy()))
        return found.to(asked.dtype), found < 0.0

    attacked = images.copy()
    rows = np.flatnonzero(score(images, labels) >= 0.0) if len(images) else np.zeros(0, dtype=np.int64)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        x, y = torch.from_numpy(images[batch]), torch.from_numpy(labels[batch])
        attacked[batch] = _evolve(judge, x, y, pixels, population, generations, factor, generator).numpy()
    return attacked


def _check(population: int, pixels: int, generations: int) -> None:
    if population < 4 or pixels < 1 or generations < 1:
        raise ValueError(
            f"one_pixel needs population >= 4, pixels >= 1 and generations >= 1; found {population}, {pixels} and "
            f"{generations}"
        )


def _evolve(
    judge: _Judge,
    x: Tensor,
    y: Tensor,
    pixels: int,
    population: int,
    generations: int,
    factor: float,
    generator: torch.Generator,
) -> Tensor:
    """Images with the first candidate that won, or else with the fittest."""
    attacked, alive = x.clone(), torch.arange(len(x), device=x.device)
    born = candidates = first_generation(x, pixels, population, generator)
    fitness = torch.full(born.shape[:2], torch.inf, device=x.device)
    for generation in range(generations + 1):
        if generation:
            parents = distinct_triples(len(alive), population, generator).to(x.device)
            born = _inside(children(candidates, parents, factor), x.shape)
        born_fitness, won = _judged(judge, x[alive], y[alive], born)
        candidates, fitness = select(candidates, fitness, born, born_fitness)
        fooled = won.any(1)
        best = _row(candidates, fitness.argmin(1))
        first_won = _row(born, born_fitness.masked_fill(~won, torch.inf).argmin(1))
        shown = torch.where(fooled[:, None, None], first_won, best)
        attacked[alive] = paint(x[alive], shown[:, None])[:, 0]
        alive, candidates, fitness = alive[~fooled], candidates[~fooled], fitness[~fooled]
        if len(alive) == 0:
            break
    return attacked


def first_generation(images: Tensor, pixels: int, population: int, generator: torch.Generator) -> Tensor:
    """Candidates [N, P, pixels, 2 + C]: row in [0, H), column in [0, W), values from N(.5, .5) cut to [0, 1].

    The paper's values are normal with mean 128 and deviation 127, of 255.
    """
    shape = (len(images), population, pixels)
    places = torch.rand(*shape, 2, generator=generator) * torch.tensor(images.shape[2:])
    values = 0.5 + 0.5 * torch.randn(*shape, images.shape[1], generator=generator)
    return _inside(torch.cat([places, values], dim=-1).to(images.device), images.shape)


def children(candidates: Tensor, parents: Tensor, factor: float) -> Tensor:
    """One child of each candidate: x_r1 + F (x_r2 - x_r3), DE/rand/1 without crossover (Storn and Price 1997).

    Args:
        candidates: [N, P, pixels, 2 + C].
        parents: Indices r1, r2, r3 of the parents of each child, int64 [N, P, 3].
        factor: F.
    """
    rows = torch.arange(len(candidates), device=candidates.device)[:, None]
    first, second, third = (candidates[rows, parents[:, :, n]] for n in range(3))
    return first + factor * (second - third)


def distinct_triples(count: int, population: int, generator: torch.Generator) -> Tensor:
    """For each of P candidates three others, all different, drawn uniformly: int64 [count, P, 3]."""
    taken = torch.arange(population).expand(count, population)[..., None]
    for free in (population - 1, population - 2, population - 3):
        drawn = torch.randint(free, (count, population), generator=generator)
        for other in taken.sort(dim=-1).values.unbind(-1):  # step over who is taken, from the lowest up
            drawn = drawn + (drawn >= other)
        taken = torch.cat([taken, drawn[..., None]], dim=-1)
    return taken[..., 1:]


def select(candidates: Tensor, fitness: Tensor, born: Tensor, born_fitness: Tensor) -> tuple[Tensor, Tensor]:
    """(Survivors, their fitness): a child takes the place of its candidate if its fitness [N, P] is lower."""
    better = born_fitness < fitness
    return torch.where(better[..., None, None], born, candidates), torch.where(better, born_fitness, fitness)


def paint(images: Tensor, candidates: Tensor) -> Tensor:
    """Images [N, P, C, H, W] with the pixels of candidates [N, P, pixels, 2 + C]; the last of equal positions wins."""
    height, width = images.shape[2:]
    rows = candidates[..., 0].floor().clamp(0, height - 1).long()
    columns = candidates[..., 1].floor().clamp(0, width - 1).long()
    count, size = candidates.shape[:2]
    painted = images[:, None].repeat(1, size, 1, 1, 1)
    n = torch.arange(count, device=images.device)[:, None]
    p = torch.arange(size, device=images.device)[None]
    for pixel in range(candidates.shape[2]):
        painted[n, p, :, rows[..., pixel], columns[..., pixel]] = candidates[:, :, pixel, 2:]
    return painted


def _row(candidates: Tensor, index: Tensor) -> Tensor:
    """One candidate [N, pixels, 2 + C] of each image."""
    return candidates[torch.arange(len(index), device=index.device), index]


def _inside(candidates: Tensor, shape: torch.Size) -> Tensor:
    """Candidates cut to the rows, columns and values that there are."""
    channels, height, width = shape[1:]
    most = torch.tensor([height, width, *[1.0] * channels], device=candidates.device)
    return candidates.clamp_min(0).minimum(most)


def _judged(judge: _Judge, images: Tensor, labels: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Fitness and success of each candidate: both [N, P]."""
    count, size = candidates.shape[:2]
    fitness, won = [], []
    at_once = max(1, _QUERIES_AT_ONCE // count)
    for batch in torch.split(candidates, at_once, dim=1):
        painted = paint(images, batch).flatten(0, 1)
        found, beaten = judge(painted, labels[:, None].expand(-1, batch.shape[1]).flatten())
        fitness.append(found.reshape(count, -1))
        won.append(beaten.reshape(count, -1))
    return torch.cat(fitness, dim=1).reshape(count, size), torch.cat(won, dim=1)
