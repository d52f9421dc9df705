"""Jacobian-based saliency map attack: set the pair of values that most favours another class, again and again."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.types import Float32, Int64
from s2ap_train.attacks.right_images import BATCH, Classifier, attack_right_images, check_images, class_count


def jsma(
    classifier: Classifier,
    images: Float32,
    labels: Int64,
    *,
    seed: int,  # noqa: ARG001 - attacks are called alike
    theta: float = 1.0,
    fraction: float = 0.12,
    targets: Int64 | None = None,
    tries: int | None = None,
    batch_size: int = BATCH,
) -> Float32:
    """Attacked images [N, C, H, W] of which at most `fraction` of the C*H*W values changed.

    Papernot et al. 2016, algorithms 2 and 3 (arXiv 1511.07528), on the logits: with a = dF_t/dx and b the sum of the
    other classes' derivatives, theta is added to the pair (p, q) with the largest -(a_p + a_q)(b_p + b_q) among pairs
    with a_p + a_q > 0 > b_p + b_q. Values at the wall that theta moves to are no longer searched. An image is done
    when it is misclassified (with `targets`: as its target), its pairs are used up, or none is left.

    Written here because the Adversarial Robustness Toolbox 1.20.1 is a large dependency and its implementation another
    attack: it takes the two values with the largest a and never looks at b.

    Args:
        classifier: Images [N, C, H, W] in [0, 1] -> logits [N, K], differentiable.
        images: Clean images, float32 [N, C, H, W] in [0, 1].
        labels: True labels, int64 [N].
        seed: Unused: nothing is random. There so that attacks are called alike.
        theta: Change of a value, pixels in [-1, 1]; negative values darken.
        fraction: Share of the values that may change.
        targets: The class each image is to become, int64 [N]; None tries the other classes, the most probable on the
            clean image first, until one works.
        tries: Classes tried for an image at most; None = all. Without meaning where there are targets.
        batch_size: Images attacked at once.

    Raises:
        InputError: If images and labels are not as stated.
        ValueError: If theta is 0 or no number in [-1, 1], the fraction is not in [0, 1], tries is below one, or
            targets are not one class of the classifier, other than the label, for each image.
    """
    if not 0 < abs(theta) <= 1 or not 0 <= fraction <= 1 or (tries is not None and tries < 1):
        raise ValueError(
            f"jsma needs 0 < |theta| <= 1, fraction in [0, 1] and tries >= 1; found {theta}, {fraction} and {tries}"
        )
    if targets is not None:
        return _targeted(classifier, images, labels, targets, theta, fraction, batch_size)

    def attack(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            logits = classifier(x)
        order = logits.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True)[:, :-1]
        attacked, alive = x.clone(), torch.arange(len(x), device=x.device)
        for turn, target in enumerate(order.T[:tries]):
            found, fooled = saliency_steps(classifier, x[alive], y[alive], target[alive], theta, fraction)
            keep = fooled if turn else torch.ones_like(fooled)
            attacked[alive[keep]] = found[keep]
            alive = alive[~fooled]
            if len(alive) == 0:
                break
        return attacked

    return attack_right_images(classifier, images, labels, attack, batch_size=batch_size)


def _targeted(
    classifier: Classifier,
    images: Float32,
    labels: Int64,
    targets: Int64,
    theta: float,
    fraction: float,
    batch_size: int,
) -> Float32:
    if targets.shape != labels.shape or (targets == labels).any() or targets.min(initial=0) < 0:
        raise ValueError("jsma needs one target class for each image, other than its label")
    check_images(images, labels)
    if len(images) and targets.max() >= (classes := class_count(classifier, images)):
        raise ValueError(f"jsma was given class {targets.max()} as a target, the classifier has 0 to {classes - 1}")
    attacked = images.copy()
    for target in np.unique(targets):  # one target at a time, so that batches know theirs
        rows = np.flatnonzero(targets == target)

        def attack(x: Tensor, y: Tensor, target: int = int(target)) -> Tensor:
            return saliency_steps(
                classifier, x, y, torch.full_like(y, target), theta, fraction, any_class_will_do=False
            )[0]

        attacked[rows] = attack_right_images(classifier, images[rows], labels[rows], attack, batch_size=batch_size)
    return attacked


def saliency_steps(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    targets: Tensor,
    theta: float,
    fraction: float,
    *,
    any_class_will_do: bool = True,
) -> tuple[Tensor, Tensor]:
    """(Attacked images [N, C, H, W], whether each is done as wished [N]) after steps towards targets [N].

    As wished is misclassified in any way, or else classified as the target.
    """
    attacked, shape = x.flatten(1).clone(), x.shape[1:]
    sign, wall = (1, 1.0) if theta > 0 else (-1, 0.0)
    steps = int(fraction * attacked.shape[1] / 2 + 1e-9)
    done = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    alive = torch.arange(len(x), device=x.device)
    for step in range(steps + 1):
        with torch.enable_grad():
            leaf = attacked[alive].requires_grad_()
            logits = classifier(leaf.reshape(-1, *shape))
            label = logits.argmax(1)
            reached = label != y[alive] if any_class_will_do else label == targets[alive]
            done[alive[reached]] = True
            if step == steps or reached.all():
                break
            of_target, of_others = _derivatives(logits, leaf, targets[alive])
        values = leaf.detach()
        pairs, valid = best_pairs(sign * of_target, sign * of_others, values != wall)
        moving = valid & ~reached
        changed = values[moving].scatter_add(1, pairs[moving], torch.full_like(pairs[moving], theta, dtype=x.dtype))
        alive = alive[moving]
        attacked[alive] = changed.clamp(0, 1)
        if len(alive) == 0:
            break
    return attacked.reshape(x.shape), done


def best_pairs(of_target: Tensor, of_others: Tensor, searched: Tensor) -> tuple[Tensor, Tensor]:
    """(The pair of values of largest saliency [N, 2], whether there is one [N]).

    Only pairs within two layers of the Pareto front (large a, small b) are tried, which loses none: a value outside
    is dominated by two others, one of which can take its place in any pair.

    Args:
        of_target: Derivatives a of the target's logit, float [N, D].
        of_others: Derivatives b of the sum of the other logits, float [N, D].
        searched: Which values may be taken, bool [N, D].
    """
    front = _front(of_target, of_others, searched)
    front = front | _front(of_target, of_others, searched & ~front)
    width = max(2, int(front.sum(1).max()))
    kept = front.float().topk(min(width, front.shape[1]), dim=1).indices  # [N, width], some not on the front
    there = front.gather(1, kept)
    a, b = of_target.gather(1, kept), of_others.gather(1, kept)
    sum_a, sum_b = a[:, :, None] + a[:, None], b[:, :, None] + b[:, None]
    possible = there[:, :, None] & there[:, None] & (sum_a > 0) & (sum_b < 0)
    possible &= torch.ones(kept.shape[1], kept.shape[1], dtype=torch.bool, device=a.device).triu(1)
    saliency = torch.where(possible, -sum_a * sum_b, -torch.inf).flatten(1)
    best = saliency.argmax(1)
    pair = torch.stack([best // kept.shape[1], best % kept.shape[1]], dim=1)
    return kept.gather(1, pair), possible.flatten(1).any(1)


def _front(a: Tensor, b: Tensor, searched: Tensor) -> Tensor:
    """Values that no other dominates by an a at least as large and a b at least as small, bool [N, D]."""
    order = a.masked_fill(~searched, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    sorted_b = b.masked_fill(~searched, torch.inf).gather(1, order)
    least_before = torch.cat([torch.full_like(sorted_b[:, :1], torch.inf), sorted_b.cummin(1).values[:, :-1]], dim=1)
    return torch.zeros_like(searched).scatter(1, order, sorted_b < least_before)


def _derivatives(logits: Tensor, leaf: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(dF_t/dx, sum of dF_j/dx over j != t), both [N, D]: two passes back."""
    of_target = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), leaf, retain_graph=True)[0]
    of_all = torch.autograd.grad(logits.sum(), leaf)[0]
    return of_target, of_all - of_target
