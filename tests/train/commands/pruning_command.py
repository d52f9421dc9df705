"""The `prune` command with a network too small and training too short for good figures."""

SMALL = {
    "model.widths": "[8, 8, 16]",
    "adversarial.epochs": 2,
    "adversarial.validate_every": 1,
    "pruning.training.epochs": 3,
    "finetune.epochs": 2,
    "finetune.validate_every": 1,
    "measures.samples": 40,
    "measures.sharpness_samples": 30,
    "measures.curvature_iterations": 5,
    "measures.sensitivity": "false",
}


def arguments(*more: str, **changes: object) -> list[str]:
    settings = {key: value for key, value in SMALL.items() if "--model" not in more or "widths" not in key}
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    return [
        "prune",
        "digits",
        *more,
        *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")),
    ]
