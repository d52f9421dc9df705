"""Decisions chosen by the time that stages take: measured once, kept, and what costs count then."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.export.small_recipe import OVERRIDES

from s2ap_export.hardening.assembly import traced_networks
from s2ap_export.hardening.stage_times import TIMES_FILE, stage_times
from s2ap_train.calibration.stage_engines import StageTimes
from s2ap_train.data import Splits
from s2ap_train.hardening.decision_choice.choice import choose_decision
from s2ap_train.hardening.train import Components, train_components
from s2ap_train.recipe import Recipe, load_recipe
from s2ap_train.storage.parts import silent_reporter

Trained = tuple[Recipe, Components, Splits, Path]
FEW = (
    "decision.max_cost=8",
    "decision_choice.juror_weights=[1.0]",
    "decision_choice.jury_shares=[0.8]",
    "decision_choice.amplifications=[3.0]",
    *(f"decision_choice.{name}=[]" for name in ("opening", "jurors_see", "sensors_see", "signals", "flagged_label")),
)


@pytest.fixture(scope="module")
def trained(small_parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    recipe, folder = load_recipe("digits", (*OVERRIDES[1::2], *FEW)), tmp_path_factory.mktemp("times") / "work"
    shutil.copytree(small_parts, folder)
    splits = recipe.load_data()
    return recipe, train_components(recipe, splits, folder, silent_reporter(), workers=1), splits, folder


def test_stages_are_timed_once_for_the_same_networks(trained: Trained) -> None:
    recipe, components, splits, folder = trained
    networks = traced_networks(recipe, components, splits)
    times = stage_times(recipe, components, networks, splits, folder)
    assert times is not None
    assert times.members.shape == (len(components.members),)
    assert min(times.purifier, times.classifier, times.members.min()) > 0
    again = stage_times(recipe, components, networks, splits, folder)
    assert again is not None
    assert (again.purifier, again.classifier, again.members.tolist()) == (
        times.purifier,
        times.classifier,
        times.members.tolist(),
    )


@pytest.mark.parametrize("decision", [{"max_cost": None}, {"cost_in": "operations"}])
def test_nothing_is_timed_where_no_time_counts(trained: Trained, tmp_path: Path, decision: dict[str, object]) -> None:
    recipe, components, splits, _ = trained
    counted = recipe.model_copy(update={"decision": recipe.decision.model_copy(update=decision)})
    networks = traced_networks(recipe, components, splits)
    assert stage_times(counted, components, networks, splits, tmp_path) is None
    assert not (tmp_path / TIMES_FILE).exists()


def test_costs_count_the_times_and_the_manifest_says_so(trained: Trained) -> None:
    # The classifier takes 1, every member 1, the purifier 1,000: what purifies is beyond 8 times.
    recipe, components, splits, folder = trained
    times = StageTimes(1000.0, 1.0, np.ones(len(components.members)))
    quiet = silent_reporter()
    found = choose_decision(recipe, components, splits, folder, quiet, workers=1, strict=False, times=times).frontier
    assert found.cost_in == "time"
    assert '"cost_in":"time"' in found.model_dump_json()
    assert "cost_in" not in found.model_copy(update={"cost_in": "operations"}).model_dump_json()
    taken = found.rows[found.chosen]
    assert taken.purify == "off"
    assert 1 + taken.members_used <= taken.cost <= 8
    assert all(row.cost > 8 for row in found.rows if row.purify == "always")
