"""How long the stages take on this machine, where decisions are chosen by time."""

import hashlib
from pathlib import Path

import numpy as np
from onnx import ModelProto

from s2ap_export.hardening.assembly import COMPARED, TracedNetworks
from s2ap_export.hardening.measured_once import measured_once
from s2ap_export.hardening.purifier_stage import exported_purifier
from s2ap_train.calibration.stage_engines import StageEngines, StageTimes
from s2ap_train.data import Splits
from s2ap_train.hardening.train import Components
from s2ap_train.recipe import Recipe

__all__ = ["TIMES_FILE", "stage_times"]

TIMES_FILE = "stage-times.json"
"""Where, in the work folder, they are stored."""


def stage_times(
    recipe: Recipe, components: Components, networks: TracedNetworks, splits: Splits, work_dir: Path
) -> StageTimes | None:
    """Time the stages, once for the same ones, so that a second run chooses the same decision.

    Args:
        recipe: Its decision says whether time counts; its purifier is the one that was chosen.
        components: The trained networks.
        networks: The same, traced.
        splits: Images of the fitting split are run.
        work_dir: Where the times are stored.

    Returns:
        Members as they were trained; None where no time counts: the recipe has no limit, or one of operations.
    """
    decision = recipe.decision
    if decision.max_cost is None or decision.cost_in != "time":
        return None
    purifier = None
    if not recipe.purifier.off and decision.purify != "off":
        purifier = exported_purifier(recipe, components.score_model, splits.fit.images[:COMPARED], lambda _: None)
    stages = (networks.classifier, *networks.members, *([] if purifier is None else [purifier]))

    def measure() -> list[float]:
        times = StageEngines(purifier, networks.classifier, networks.members, threads=1).together(splits.fit.images)
        return [times.purifier, times.classifier, *times.members.tolist()]

    before, classifier, *members = measured_once(work_dir / TIMES_FILE, _digest(stages), measure)
    return StageTimes(before, classifier, np.array(members, dtype=np.float64))


def _digest(stages: tuple[ModelProto, ...]) -> str:
    parts = [hashlib.sha256(stage.SerializeToString(deterministic=True)).hexdigest() for stage in stages]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
