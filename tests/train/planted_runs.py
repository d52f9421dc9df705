"""Run folders as `prune` writes them, with planted figures."""

from pathlib import Path

import torch

from s2ap_train.pruning.masks import top_k_mask
from s2ap_train.storage.run_folder import write_run

ROBUST = {"hydra": (0.40, 0.44, 0.42), "s2ap": (0.43, 0.45, 0.47)}
"""Planted robust accuracies of seeds 0, 1, 2: paired differences 0.03, 0.01, 0.05."""
ATTACK = {"name": "pgd", "eps": 0.1, "steps": 20, "restarts": 3, "samples": 100, "split": "test", "seed": 0}


def masks_of(method, seed):
    generator = torch.Generator().manual_seed(100 * seed + len(method))
    return {"a.weight": top_k_mask(torch.rand(20, 10, generator=generator), 0.2)}


def make_run(folder: Path, method="s2ap", seed=0, *, base="hydra", config=None, **changes) -> Path:
    """A run folder as `prune` writes it, with planted figures; its path."""
    robust = ROBUST.get(method, (0.3, 0.3, 0.3))[seed % 3]
    metrics = {
        "name": "digits",
        "method": method,
        "base": base,
        "structure": "unstructured",
        "seed": seed,
        "data": "digits",
        "model": "small_cnn",
        "target_sparsity": 0.8,
        "sparsity": 0.799,
        "clean_accuracy": 0.9,
        "mask_robust_accuracy": robust - 0.1,
        "robust_accuracy": robust,
        "flip_rate": 0.01 if method == "s2ap" else None,
        "sharpness": 0.5 if method == "s2ap" else 0.75,
        "hessian_eigenvalue": 12.3456,
        "hessian_eigenvalue_relative": None,
        "seconds_mask_search": 11.0 if method == "s2ap" else 10.0,
        "attack": {**ATTACK, "seed": seed},
        "stability": {"flip_between_epochs": [0.2, 0.1, 0.06 if method == "s2ap" else 0.09]},
        "collapse": None,
        "after": {"images_sha256": f"{seed:064d}"},
        **changes,
    }
    pruning = {"method": base, "sparsity": 0.8, "s2ap": {"radius": 0.02} if method == "s2ap" else None}
    settings = {"name": "digits", "seed": seed, "model": "small_cnn", "pruning": pruning, "finetune": {"epochs": 6}}
    masks = masks_of(method, seed)
    write_run(
        folder,
        weights={"a.weight": torch.zeros(20, 10)},
        masks=masks,
        scores={"a.weight": torch.ones(20, 10)},
        config={**settings, **(config or {})},
        metrics=metrics,
        record={"architecture": {"name": "small_cnn"}},
    )
    return folder
