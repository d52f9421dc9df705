"""What an evaluation was: the file, the data, the plan, the versions and the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from s2ap_defend.model_file import ModelFile
from s2ap_train.data import ImageSet
from s2ap_train.redteam.plan import Plan
from s2ap_train.redteam.results import Configuration

__all__ = ["configuration_of", "versions_here"]

_LIBRARIES = ("s2ap-defend", "torch", "onnxruntime-gpu", "onnxruntime", "foolbox", "pyautoattack", "numpy")


def configuration_of(
    path: Path,
    file: ModelFile,
    data: ImageSet,
    plan: Plan,
    recipe: str,
    source: str,
    command: str,
    versions: Mapping[str, str],
    first: int = 0,
) -> Configuration:
    """The configuration of an evaluation.

    Args:
        path: The model file.
        file: The same, opened.
        data: The images that are attacked.
        plan: What was run on them.
        recipe: Recipe of the data; empty: that of the file.
        source: The data in words; empty: those of the file.
        command: The command that was given.
        versions: As `versions_here`.
        first: Number of the first image among the test images.
    """
    return Configuration(
        command=command,
        model=path.name,
        weights_sha256=file.manifest.weights_sha256,
        answer=file.manifest.decision.answer,
        decision=file.manifest.decision.in_words,
        weaknesses=tuple(one.text for one in file.manifest.weaknesses),
        recipe=recipe or file.manifest.provenance.recipe,
        data=source or file.manifest.provenance.data,
        preset=plan.name,
        budget=asdict(plan.budget),
        samples=len(data),
        images_sha256=data.sha256,
        first=first,
        eps=plan.eps,
        l2=plan.l2,
        pixels=plan.pixels,
        seed=plan.seed,
        versions=versions,
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    )


def versions_here() -> dict[str, str]:
    """Versions of Python and of the libraries that decide what is found."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
