"""Toy data and comparisons that many tests of training share."""

import torch


def bars(count=80, seed=0):
    """Four classes: a bright bar in one of four places of a noisy 8x8 image; (images [N, 1, 8, 8], labels [N])."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    images = 0.3 * torch.rand(count, 1, 8, 8, generator=generator)
    for n, label in enumerate(labels.tolist()):
        images[n, :, 2 * label : 2 * label + 2] += 0.6
    return images, labels


def blobs(count=60, seed=0):
    """Two classes: a bright or a dark noisy 8x8 image; (images [N, 1, 8, 8], labels [N])."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    return 0.4 * torch.rand(count, 1, 8, 8, generator=generator) + 0.5 * labels[:, None, None, None], labels


def same(first, second):
    """Whether named tensors are equal, bit for bit."""
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())
