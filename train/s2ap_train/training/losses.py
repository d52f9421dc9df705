"""Robust losses, and the adversarial examples that each of them is taken on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from s2ap_train.attacks.pgd import Objective, pgd
from s2ap_train.models.folding import evaluation_view
from s2ap_train.models.modes import evaluation_mode
from s2ap_train.training.config import TrainingConfig

Logits = Callable[[Tensor], Tensor]
"""Images [N, C, H, W] in [0, 1] -> logits [N, K]."""

_TRADES_START = 0.001  # standard deviation of the start of TRADES's attack, pixels


def robust_loss(config: TrainingConfig, logits: Logits, x: Tensor, attacked: Tensor, y: Tensor) -> Tensor:
    """The loss of `config.loss` over a batch: a mean over its images.

    * "natural": CE(f(x), y); `attacked` is not looked at.
    * "pgd": CE(f(x'), y), Madry et al. 2018, equation 2.1 (arXiv 1706.06083).
    * "trades": CE(f(x), y) + beta KL(p(x) || p(x')), Zhang et al. 2019, equation 5 (arXiv 1901.08573).
    * "mart": BCE(f(x'), y) + beta (1 - p_y(x)) KL(p(x) || p(x')), Wang et al. 2020, equation 11 (ICLR 2020), where
      BCE = -log p_y(x') - log(1 - max over k != y of p_k(x')).

    The losses of two terms run two passes, clean images first: in training mode batch normalisation sees the two kinds
    in batches of their own and averages both into its running statistics, as the authors' code does.

    Args:
        config: Loss, beta and label smoothing (of the cross-entropy terms).
        logits: The network, in the mode that the loss is to be taken in.
        x: Clean images, float32 [N, C, H, W] in [0, 1].
        attacked: Their adversarial examples, of the same shape.
        y: Labels, int64 [N].
    """
    if config.loss == "natural":
        return cross_entropy(logits(x).float(), y, label_smoothing=config.label_smoothing)
    if config.loss == "pgd":
        return cross_entropy(logits(attacked).float(), y, label_smoothing=config.label_smoothing)
    clean = logits(x).float()  # [N, K]
    moved = logits(attacked).float()
    divergence = kl_divergence(clean, moved)  # [N]
    if config.loss == "trades":
        return cross_entropy(clean, y, label_smoothing=config.label_smoothing) + config.kl_weight * divergence.mean()
    boosted = cross_entropy(moved, y, label_smoothing=config.label_smoothing) - runner_up_margin(moved, y).mean()
    doubt = 1 - clean.softmax(1).gather(1, y[:, None])[:, 0]  # [N]
    return boosted + config.kl_weight * (divergence * doubt).mean()


def kl_divergence(clean: Tensor, moved: Tensor) -> Tensor:
    """KL(softmax(clean) || softmax(moved)) of two sets of logits [N, K], summed over classes: [N], in nats."""
    return kl_div(moved.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True).sum(1)


def runner_up_margin(logits: Tensor, y: Tensor) -> Tensor:
    """log(1 - p_k) [N] of the likeliest wrong class k, from logits [N, K]: the margin term of MART's boosted CE.

    1 - p_k is the sum of the other probabilities, so its logarithm is a difference of two log-sum-exp: exact also
    where p_k rounds to 1.
    """
    is_label = torch.nn.functional.one_hot(y, logits.shape[1]).bool()
    runner_up = logits.detach().masked_fill(is_label, -torch.inf).argmax(1, keepdim=True)  # [N, 1]
    others = logits.scatter(1, runner_up, -torch.inf)
    return others.logsumexp(1) - logits.logsumexp(1)


def adversarial_examples(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    config: TrainingConfig,
    generator: torch.Generator | None,
    start: Tensor | None = None,
) -> Tensor:
    """The examples that training takes its loss on: PGD on the model in evaluation mode, with the config's steps.

    They raise the cross-entropy for "pgd" and "mart", from a uniform start; for "trades" the divergence from the clean
    probabilities, which are computed once, from a start 0.001 N(0, 1) away. "natural" hands back `x`.

    Args:
        model: The network; its parameters and modes are as before afterwards.
        x: Clean images, float32 [N, C, H, W] in [0, 1].
        y: Labels, int64 [N].
        eps: Radius of the ball, pixels.
        config: Loss, steps and step size.
        generator: Source of the start; not needed where `start` is given.
        start: Noise from `start_noise`, float32 [N, C, H, W]; None draws it.

    Returns:
        Images within eps of `x` and in [0, 1], detached.
    """
    if not config.adversarial:
        return x
    noise = start
    if noise is None:
        if generator is None:
            raise ValueError("the start of the attack needs a generator or the noise itself")
        noise = _noise(x, config, generator)
    view = evaluation_view(model)
    first = x + (noise if config.loss == "trades" else eps * noise)
    with evaluation_mode(view):
        objective = divergence_from(view, x) if config.loss == "trades" else None
        return pgd(
            view,
            x,
            y,
            eps=eps,
            steps=config.attack_steps,
            step_size=config.step_size(eps),
            start=first,
            objective=objective,
        )


def start_noise(x: Tensor, config: TrainingConfig, generator: torch.Generator) -> Tensor | None:
    """How far from the clean images [N, C, H, W] the attack of `config.loss` starts; None for "natural".

    In units of eps, uniform in [-1, 1], for "pgd" and "mart"; in pixels, 0.001 N(0, 1), for "trades".
    """
    return _noise(x, config, generator) if config.adversarial else None


def _noise(x: Tensor, config: TrainingConfig, generator: torch.Generator) -> Tensor:
    if config.loss == "trades":
        normal = torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype)
        return _TRADES_START * normal.to(x.device)
    uniform = torch.rand(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)
    return 2 * uniform - 1


def divergence_from(model: Logits, x: Tensor) -> Objective:
    """TRADES's inner objective: KL(p(x) || p(x')), summed over the batch, with p(x) computed here and once."""
    with torch.no_grad():
        clean = model(x).float()

    def objective(logits: Tensor, _: Tensor) -> Tensor:
        return kl_divergence(clean, logits.float()).sum()

    return objective
