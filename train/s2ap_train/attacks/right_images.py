"""The images an attack works on: those that the classifier gets right. The others come back as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from s2ap_defend.errors import InputError
from s2ap_defend.types import Bool, Float32, Float64, Int64
from s2ap_train.compute.memory import images_at_once
from s2ap_train.models.modes import device_of, evaluation_mode

Classifier = Callable[[Tensor], Tensor]
"""Images [N, C, H, W] in [0, 1] -> logits or log-probabilities [N, K]; the normalisation of pixels is inside."""

BATCH = 256


def attack_right_images(
    classifier: Classifier,
    images: Float32,
    labels: Int64,
    attack: Callable[[Tensor, Tensor], Tensor],
    *,
    batch_size: int = BATCH,
) -> Float32:
    """Attacked images, float32 [N, C, H, W] in [0, 1]; what the classifier gets wrong anyway is returned unchanged.

    A module is in evaluation mode meanwhile and its parameters ask for no gradients, so they keep those that they had.

    Args:
        classifier: What is attacked.
        images: Clean images, float32 [N, C, H, W] in [0, 1].
        labels: True labels, int64 [N].
        attack: Images [B, C, H, W] and labels [B] on the classifier's device -> attacked images.
        batch_size: Images attacked at once, fewer of more than 64x64 pixels.

    Raises:
        InputError: If the images are no float32 array in [0, 1] or there is not one label for each.
    """
    check_images(images, labels)
    attacked = images.copy()
    rows = np.flatnonzero(classified_right(classifier, images, labels))
    device = device_of(classifier)
    with evaluation_mode(classifier), weights_frozen(classifier):
        size = images_at_once(batch_size, images.shape)
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            x, y = torch.from_numpy(images[batch]).to(device), torch.from_numpy(labels[batch]).to(device)
            attacked[batch] = attack(x, y).detach().clamp(0, 1).cpu().numpy()
    return attacked


def classified_right(classifier: Classifier, images: Float32, labels: Int64, *, batch_size: int = BATCH) -> Bool:
    """Whether the classifier's largest logit is the label's [N]."""
    device = device_of(classifier)
    right = np.zeros(len(labels), dtype=bool)
    with torch.no_grad(), evaluation_mode(classifier):
        size = images_at_once(batch_size, images.shape)
        for start in range(0, len(images), size):
            batch = slice(start, start + size)
            found = classifier(torch.from_numpy(images[batch]).to(device)).argmax(1)
            right[batch] = found.cpu().numpy() == labels[batch]
    return right


def class_count(classifier: Classifier, images: Float32) -> int:
    """Number of classes that a classifier tells apart, asked with the first of some images [N, C, H, W], N > 0."""
    with torch.no_grad(), evaluation_mode(classifier):
        return int(classifier(torch.from_numpy(images[:1]).to(device_of(classifier))).shape[1])


def label_margin(logits: Float64, labels: Int64) -> Float64:
    """Logit, or log-probability, of the label less the largest other [N], of logits [N, K]."""
    rows = np.arange(len(labels))
    others = logits.copy()
    others[rows, labels] = -np.inf
    return np.asarray(logits[rows, labels] - others.max(axis=1))


@contextmanager
def weights_frozen(classifier: object) -> Iterator[None]:
    """Within this context no parameter of a module asks for gradients; a plain function is left alone."""
    parameters = classifier.parameters() if isinstance(classifier, nn.Module) else ()
    asking = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def in_batches(function: Callable[[Tensor], Tensor], images: Tensor, batch_size: int) -> Tensor:
    """A function of images [N, C, H, W] without gradients, asked for `batch_size` at a time, fewer beyond 64x64."""
    with torch.no_grad():
        return torch.cat([function(batch) for batch in torch.split(images, images_at_once(batch_size, images.shape))])


def check_images(images: Float32, labels: Int64) -> None:
    """Check what is to be attacked.

    Raises:
        InputError: As `attack_right_images`.
    """
    if images.ndim != 4 or images.dtype != np.float32:
        raise InputError(
            f"the images to attack are {images.dtype} of shape {list(images.shape)}, expected float32 of shape "
            "[N, C, H, W]; convert them to pixels in [0, 1] first"
        )
    if labels.shape != (len(images),) or labels.dtype != np.int64:
        raise InputError(
            f"the labels are {labels.dtype} of shape {list(labels.shape)}, expected one int64 label for each of "
            f"{len(images)} images"
        )
    if images.size and not (images.min() >= 0 and images.max() <= 1):
        raise InputError(
            f"the images to attack hold values from {images.min()} to {images.max()}, expected pixels in [0, 1]; "
            "leave the normalisation to the classifier"
        )
