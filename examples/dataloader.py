"""Accuracy and flags over a torch DataLoader.

    python examples/dataloader.py model.onnx test.npz       # arrays `images`, float32 [N, C, H, W], and `labels`

Any loader will do that yields images in [0, 1], not normalised, and labels in the order of `classes`. The classifier
runs on ONNX Runtime, so tensors are handed over as arrays.
"""

import sys
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from s2ap_defend import DefendedClassifier


def measured(classifier: DefendedClassifier, loader: DataLoader[Any]) -> dict[str, float]:
    """Shares of all images: answered rightly, flagged, not answered."""
    counts, images = np.zeros(3), 0
    for x, y in loader:
        verdicts = classifier(x.numpy(force=True))
        right = ~verdicts.abstained & (verdicts.label == y.numpy())
        counts += [right.sum(), verdicts.adversarial.sum(), verdicts.abstained.sum()]
        images += len(y)
    return dict(zip(("right", "flagged", "not answered"), (counts / images).tolist(), strict=True))


def main(model: str, data: str) -> dict[str, float]:
    """The same of a file of arrays."""
    with np.load(data) as arrays:
        dataset = TensorDataset(torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]))
    return measured(DefendedClassifier.load(model), DataLoader(dataset, batch_size=64))


if __name__ == "__main__":
    for name, share in main(*sys.argv[1:]).items():
        print(f"{name}: {share:.1%}")
