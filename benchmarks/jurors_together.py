"""Jurors trained on together: losses and attacks that look at all of them, and as many steps without that.

Every kind begins with the same trained jurors and takes the same number of steps on as many adversarial images.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from s2ap_defend.errors import RecipeError
from s2ap_train.attacks.pgd import Objective, pgd
from s2ap_train.data import Splits
from s2ap_train.ensemble import Jury
from s2ap_train.models import Classifier
from s2ap_train.models.modes import evaluation_mode
from s2ap_train.storage.checkpoint import load_checkpoint, save_checkpoint
from s2ap_train.storage.fingerprint import fingerprint, weights_digest
from s2ap_train.training.batches import apply_masks, augment, batches, cosine
from s2ap_train.training.config import TrainingConfig

Jurors = Sequence[Classifier]
Loss = Callable[[Jurors, Tensor, Tensor, TrainingConfig, torch.Generator], Tensor]
"""(jurors in training mode, images [N, C, H, W], labels [N], settings, source of starts) -> loss of the batch."""

ENTROPY, DIVERSITY = 2.0, 0.5
"""Weights of the two terms of adaptive diversity promoting, those of its authors."""
ALIGNMENT = 0.5
"""Weight of the cosine between gradients."""
VERSION = 1
"""Raise it with every change of what a kind does."""


def trained_together(
    kind: str, jurors: Sequence[Classifier], splits: Splits, config: TrainingConfig, seed: int, folder: Path
) -> tuple[Classifier, ...]:
    """Copies of the jurors after the epochs of a config, all in one loop; stored in a folder, and read where they are.

    Weights that are 0 stay 0: what was pruned does not come back. SGD with momentum on a cosine to zero; the weights
    of the last step count.

    Args:
        kind: One of TOGETHER.
        jurors: As they were trained.
        splits: Their data.
        config: Epochs, learning rate, attack.
        seed: Of order and starts.
        folder: Of finished ones.
    """
    key = fingerprint((VERSION, kind, config, seed, [weights_digest([one]) for one in jurors], splits.sha256("train")))
    path, copies = folder / key[:16], tuple(copy.deepcopy(one) for one in jurors)
    whole = nn.ModuleList(copies)
    if path.exists():
        whole.load_state_dict(load_checkpoint(path)[0])
        whole.eval()
        return copies
    parameters = dict(whole.named_parameters())
    masks = {name: weight != 0 for name, weight in parameters.items() if weight.dim() > 1}
    optimiser = torch.optim.SGD(whole.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
    images, labels = torch.from_numpy(splits.train.images), torch.from_numpy(splits.train.labels)
    generator, step = torch.Generator().manual_seed(seed), 0
    for epoch in range(config.epochs):
        rows_of_epoch = batches(len(images), config.batch_size, generator)
        for rows in rows_of_epoch:
            for group in optimiser.param_groups:
                group["lr"] = cosine(config.lr, step / len(rows_of_epoch), config.epochs)
            whole.train()
            optimiser.zero_grad()
            x = augment(images[rows], config, generator)
            TOGETHER[kind](copies, x, labels[rows], config, generator).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            apply_masks(parameters, masks)
            step += 1
        if not all(bool(value.isfinite().all()) for value in whole.state_dict().values() if value.is_floating_point()):
            raise RecipeError(f"jurors of kind {kind!r} are no longer finite after epoch {epoch + 1}; lower the lr")
    whole.eval()
    save_checkpoint(path, tensors=whole.state_dict(), record={"kind": kind, "epochs": config.epochs})
    return copies


def attacked(
    model: Callable[[Tensor], Tensor],
    jurors: Jurors,
    x: Tensor,
    y: Tensor,
    config: TrainingConfig,
    generator: torch.Generator,
    objective: Objective | None = None,
) -> Tensor:
    """Adversarial images of a function of some jurors, found in evaluation mode; other objectives as for `pgd`."""
    with evaluation_mode(nn.ModuleList(jurors)):
        return pgd(
            model,
            x,
            y,
            eps=config.eps,
            steps=config.attack_steps,
            step_size=config.step_size(config.eps),
            generator=generator,
            objective=objective,
        )


def each_alone(jurors: Jurors, x: Tensor, y: Tensor, config: TrainingConfig, generator: torch.Generator) -> Tensor:
    """Each juror on its own adversarial images: no more than longer training."""
    return torch.stack([cross_entropy(one(attacked(one, (one,), x, y, config, generator)), y) for one in jurors]).sum()


def jury_attack(jurors: Jurors, x: Tensor, y: Tensor, config: TrainingConfig, generator: torch.Generator) -> Tensor:
    """Each juror on images that fool the mean probability of all."""
    moved = attacked(Jury(jurors), jurors, x, y, config, generator)
    return torch.stack([cross_entropy(one(moved), y) for one in jurors]).sum()


def diverse_predictions(
    jurors: Jurors, x: Tensor, y: Tensor, config: TrainingConfig, generator: torch.Generator
) -> Tensor:
    """Adaptive diversity promoting on images that fool the jury: Pang et al. 2019, equation 5 (arXiv 1901.08846).

    The entropy of the mean probability, and the logarithm of the squared volume that the jurors' probabilities of the
    wrong labels span, each juror's brought to length 1, are raised as the cross-entropies are lowered.
    """
    moved = attacked(Jury(jurors), jurors, x, y, config, generator)
    logits = torch.stack([one(moved) for one in jurors])  # [n, N, K]
    probabilities = logits.softmax(2)
    mean = probabilities.mean(0)
    entropy = -(mean * mean.clamp_min(1e-12).log()).sum(1).mean()
    wrong = probabilities * (1 - one_hot(y, logits.shape[2]))
    wrong = wrong / wrong.norm(dim=2, keepdim=True).clamp_min(1e-12)
    gram = torch.einsum("ink,jnk->nij", wrong, wrong) + 1e-4 * torch.eye(len(jurors))
    losses = torch.stack([cross_entropy(one, y) for one in logits]).sum()
    return losses - ENTROPY * entropy - DIVERSITY * torch.logdet(gram).mean()


def apart_gradients(jurors: Jurors, x: Tensor, y: Tensor, config: TrainingConfig, generator: torch.Generator) -> Tensor:
    """Each juror on its own adversarial images, and gradients of their losses there that point apart.

    The similarity of Yang et al. 2021 (TRS, arXiv 2104.00671), the absolute cosine between two jurors' gradients at an
    image, mean over pairs; their smoothness is left to the adversarial training.
    """
    loss, slopes = x.new_zeros(()), []
    for one in jurors:
        moved = attacked(one, (one,), x, y, config, generator).requires_grad_()
        own = cross_entropy(one(moved), y)
        (slope,) = torch.autograd.grad(own * len(x), moved, create_graph=True)
        slopes.append(slope.flatten(1))
        loss = loss + own
    alike = [torch.cosine_similarity(a, b).abs().mean() for a, b in combinations(slopes, 2)]
    return loss + ALIGNMENT * torch.stack(alike).mean()


def distilled(jurors: Jurors, x: Tensor, y: Tensor, config: TrainingConfig, generator: torch.Generator) -> Tensor:
    """Each juror on images that carry the features of others in another juror, and on its own adversarial images.

    Yang et al. 2020, equations 2 and 4 (DVERGE, arXiv 2009.14720), with adversarial training added as the authors
    combine them. The layer is drawn for every batch, and for each juror one other; the paper takes all others.
    """
    loss, count = each_alone(jurors, x, y, config, generator), len(jurors)
    order = torch.randperm(len(x), generator=generator)
    depth = int(torch.randint(1, len(_blocks(jurors[0])) + 1, (), generator=generator))
    ahead = torch.randint(1, max(2, count), (count,), generator=generator).tolist()
    for number, one in enumerate(jurors):
        other = jurors[(number + ahead[number]) % count]
        loss = loss + cross_entropy(one(_with_features(other, depth, x, x[order], config, generator)), y)
    return loss


def _with_features(
    juror: nn.Module, depth: int, x: Tensor, of: Tensor, config: TrainingConfig, generator: torch.Generator
) -> Tensor:
    """Images near x whose features after some blocks of a juror are those of other images."""
    found: list[Tensor] = []
    handle = _blocks(juror)[depth - 1].register_forward_hook(lambda _module, _inputs, output: found.append(output))
    try:

        def features(images: Tensor) -> Tensor:
            juror(images)
            return found.pop()

        with evaluation_mode(juror), torch.no_grad():
            wanted = features(of)
        nearer: Objective = lambda values, _: -(values - wanted).square().sum()  # noqa: E731
        return attacked(features, (juror,), x, torch.zeros(len(x)), config, generator, objective=nearer)
    finally:
        handle.remove()


def _blocks(juror: nn.Module) -> nn.ModuleList:
    blocks = getattr(juror, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise RecipeError(f"kind 'distilled' needs jurors with blocks, such as small_cnn; found {type(juror).__name__}")
    return blocks


LONGER = "longer"
TOGETHER: Mapping[str, Loss] = {
    LONGER: each_alone,
    "jury attack": jury_attack,
    "diverse predictions": diverse_predictions,
    "apart gradients": apart_gradients,
    "distilled": distilled,
}
"""What looks at all jurors, by name; 'longer' looks at none and is what the others are compared with."""
