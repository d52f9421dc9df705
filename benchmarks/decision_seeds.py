"""The decision benchmark over several training seeds, and what must hold of its files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from report import paired

from s2ap_defend.errors import RecipeError
from s2ap_defend.sequential import Answer
from s2ap_train.calibration.flops import StageFlops
from s2ap_train.redteam.ablation.must_hold import must_hold
from s2ap_train.redteam.ablation.names import CONFIDENCE, PRUNED
from s2ap_train.redteam.rows import Comparison, Requirement
from s2ap_train.statistics.paired import pooled_difference, seed_difference

FIGURES = {
    "clean": "clean",
    "clean_flagged": "flagged clean",
    "label_right": "label right",
    "right_or_flagged": "right or flagged",
}
MEASURES = {"clean accuracy": "clean", "label right": "label_right", "right or flagged": "right_or_flagged"}


def over_seeds(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Differences from the same baselines as in each run, over seeds, of the systems that every run has.

    Where no two runs share test images, their images are pooled, too.
    """
    if len(runs) < 2:
        return []
    apart = len({run["first"] for run in runs}) == len(runs)
    by_key = [{one["key"]: one for one in run["systems"]} for run in runs]
    found = []
    for key in by_key[0]:
        same = [systems[key] for systems in by_key if key in systems]
        if len(same) < len(runs) or not same[0]["against"]:
            continue
        by_measure = {measure: [one["against"][measure] for one in same] for measure in same[0]["against"]}
        means = {name: sum(one[name] for one in same) / len(same) for name in (*FIGURES, "cost", "members_used")}
        sizes = {name: same[0][name] for name in ("member_flops", "classifier_flops")}
        differences = {
            measure: seed_difference([one["before"] for one in pairs], [one["after"] for one in pairs]).to_json()
            for measure, pairs in by_measure.items()
        }
        pooled = {
            measure: pooled_difference([paired(one) for one in pairs]).to_json()
            for measure, pairs in by_measure.items()
        }
        found.append(
            {"key": key} | means | sizes | {"differences": differences} | ({"pooled": pooled} if apart else {})
        )
    return found


def earlier_runs(
    files: Sequence[Path], plan: Mapping[str, Any], samples: int, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Runs of files that the benchmark wrote before, to stand next to those of other seeds.

    Args:
        files: JSON.
        plan: Recipe and budget that they must have been measured with, as in the files.
        samples: Test images that each must have.
        seeds: Those that are measured now, which they must not have.

    Raises:
        RecipeError: If a file cannot be read, or its runs cannot be compared with those of now.
    """
    runs: list[dict[str, Any]] = []
    for file in files:
        try:
            document = json.loads(file.read_bytes())
            theirs, found = {name: document[name] for name in plan}, document["runs"]
            known = [(run["seed"], run["samples"]) for run in found]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise RecipeError(
                f"{file} holds no figures of this benchmark ({error!r}); name a file of --json"
            ) from error
        if theirs != plan:
            raise RecipeError(
                f"{file} was measured with another recipe or budget, and cannot be compared; measure it again"
            )
        for seed, images in known:
            if images != samples:
                raise RecipeError(f"{file} has {images} test images for seed {seed}, --samples says {samples}")
            if seed in (*seeds, *(run["seed"] for run in runs)):
                raise RecipeError(f"seed {seed} of {file} is measured twice; name it once, in --seed or in one --add")
        runs += found
    return runs


def requirements(system: Mapping[str, Any]) -> tuple[Requirement, ...]:
    """What must hold of the file of an answer, with what was found; of other systems, and of older figures, nothing.

    Args:
        system: Its JSON values, differences from the baselines among them.
    """
    answer: Answer | None = next((one for one in get_args(Answer) if system["key"].startswith(f"{one}, ")), None)
    if answer is None or "member_flops" not in system:
        return ()
    comparisons = [
        Comparison(CONFIDENCE if measure == "right or flagged" else PRUNED, measure, paired(found))
        for measure, found in system["against"].items()
    ]
    flops = StageFlops(0, system["classifier_flops"], np.array(system["member_flops"], dtype=np.int64))
    return must_hold(answer, comparisons, system["members_used"], flops)
