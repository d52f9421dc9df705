"""The parts of a recipe: trained in this process, in several or on Ray, each kept, each resumed by itself."""

import importlib.util
import io
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console
from tests.train.forked_process import ended, forked
from tests.train.toy_data import same

from s2ap_defend import RecipeError
from s2ap_defend.commands.main import run
from s2ap_defend.progress import Reporter
from s2ap_train.hardening.parts import PartList
from s2ap_train.hardening.train import train_components, train_networks
from s2ap_train.recipe import load_ensemble_recipe, load_recipe
from s2ap_train.storage.checkpoint import load_checkpoint, save_checkpoint

NAMES = tuple(load_ensemble_recipe("digits").members)
COUNTS = {"random_channel": 2, "lottery_ticket": 1, "mutation": 2}
TINY = [
    'model={name = "small_cnn", widths = [4, 6]}',
    "plain.epochs=2",
    "members.random_channel.settings.training.epochs=1",
    "members.lottery_ticket.settings.search.epochs=1",
    "members.lottery_ticket.settings.training.epochs=1",
    "members.mutation.settings.rate=0.05",
    *(f"members.{name}.count={COUNTS.get(name, 0)}" for name in NAMES),
]
PARTS = ("plain", "member-random_channel-0", "member-random_channel-1", "member-lottery_ticket-0")
PARTS += ("member-mutation-0", "member-mutation-1")


def trained(folder: Path, *, workers=1, overrides=()):
    """The networks, and what was reported."""
    recipe, text = load_ensemble_recipe("digits", [*TINY, *overrides]), io.StringIO()
    reporter = Reporter(Console(file=text, width=200))
    return train_networks(recipe, recipe.load_data(), folder, reporter, workers=workers), text.getvalue()


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A work folder in which everything was trained in one process."""
    folder = tmp_path_factory.mktemp("parts")
    trained(folder)
    return folder


def checkpoints(folder: Path):
    return {name: load_checkpoint(folder / name) for name in PARTS}


def equal_weights(first: Path, second: Path) -> bool:
    one, two = checkpoints(first), checkpoints(second)
    return all(one[name][0].keys() == two[name][0].keys() and same(one[name][0], two[name][0]) for name in PARTS)


def test_every_member_is_a_part_of_its_own_with_its_record(kept):
    (plain, members), text = trained(kept)
    assert sorted(path.name for path in kept.glob("[!.]*")) == sorted(PARTS)
    assert tuple(members) == NAMES, "families in the order of the recipe, those without members too"
    assert {name: len(family) for name, family in members.items() if family} == COUNTS
    assert all(f"{name}: reused" in text for name in PARTS)
    assert text.count("\n") == len(PARTS), "nothing was trained, and every part is told of once"
    assert (plain.method, plain.sparsity, plain.adversarially_trained) == ("plain", 0.0, False)
    for family in members.values():
        for network in family:
            assert network.flops <= plain.flops
            assert network.seconds > 0
    assert [network.method for network in members["mutation"]] == ["mutation-gf", "mutation-ws"]
    assert members["random_channel"][0].flops < plain.flops
    assert members["random_channel"][0].seeds.initialisation == plain.seeds.initialisation == 0


def test_several_processes_train_the_same_networks_as_one(kept, tmp_path):
    _, text = trained(tmp_path, workers=2)
    assert equal_weights(kept, tmp_path)
    assert "training in 2 processes" in text
    assert all(f"{name}: " in text for name in PARTS)


def test_members_wait_for_the_plain_network_only_if_they_start_from_it():
    recipe = load_ensemble_recipe("digits", TINY)
    needs = {part.name: part.needs for part in PartList(recipe, recipe.load_data()).all()}
    alone = {"plain", "member-lottery_ticket-0"}
    assert needs == {name: () if name in alone else ("plain",) for name in PARTS}
    parts = PartList(load_recipe("digits"), recipe.load_data()).all()
    names = [part.name for part in parts]
    assert names[:3] == ["score-model", "adversarial", "pruned"], "long ones first"
    for place, part in enumerate(parts):
        assert set(part.needs) <= set(names[:place]), "what a part needs comes before it"
    assert names.index("plain") < names.index("member-fresh_channel-0")


def test_only_what_is_missing_or_other_is_trained(kept, tmp_path):
    shutil.copytree(kept, tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "member-mutation-1")
    overrides = ("members.random_channel.count=1", "members.lottery_ticket.settings.sparsity=0.4")
    _, text = trained(tmp_path / "work", overrides=overrides)
    reused = {line.split(":")[0] for line in text.splitlines() if "reused" in line}
    assert reused == {"plain", "member-random_channel-0", "member-mutation-0"}
    assert same(load_checkpoint(tmp_path / "work" / PARTS[-1])[0], load_checkpoint(kept / PARTS[-1])[0])


def test_members_are_made_again_when_the_plain_network_they_start_from_is_another(kept, tmp_path):
    shutil.copytree(kept, tmp_path / "work")
    _, text = trained(tmp_path / "work", overrides=("plain.lr=0.05",))
    reused = {line.split(":")[0] for line in text.splitlines() if "reused" in line}
    assert reused == {"member-lottery_ticket-0"}


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_a_checkpoint_that_does_not_fit_is_never_loaded_in_part(kept, tmp_path, change):
    folder = tmp_path / "work"
    shutil.copytree(kept, folder)
    tensors, record = load_checkpoint(folder / "plain")
    key = "weight.classifier.bias"
    others = {
        "missing": {},
        "unknown": {key: tensors[key], "weight.more": tensors[key]},
        "shape": {key: tensors[key][:3]},
    }
    save_checkpoint(
        folder / "plain", tensors={k: t for k, t in tensors.items() if k != key} | others[change], record=record
    )
    _, text = trained(folder)
    assert "plain: unusable, " in text
    assert {"missing": "missing ['classifier.bias']", "unknown": "unknown ['more']", "shape": "has shape"}[
        change
    ] in text
    assert equal_weights(kept, folder)


def test_a_killed_run_goes_on_member_by_member(kept, tmp_path):
    """Killed for real, twice over: what was whole is reused, what was in the middle goes on from its last epoch."""
    slow = ("members.random_channel.settings.training.epochs=400",)
    process = forked(partial(trained, overrides=slow), tmp_path)
    begun = tmp_path / "member-random_channel-0.unfinished" / "snapshot-1" / "checkpoint.json"
    deadline = time.monotonic() + 120
    while not begun.exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    assert ended(process) == -signal.SIGKILL
    assert begun.exists()
    assert not (tmp_path / "member-random_channel-0").exists()
    whole = {name for name in PARTS if (tmp_path / name / "checkpoint.json").exists()}
    assert whole == {"plain", "member-lottery_ticket-0"}
    shorter = ("members.random_channel.settings.training.epochs=3",)
    _, text = trained(tmp_path, overrides=shorter)
    assert {line.split(":")[0] for line in text.splitlines() if "reused" in line} == whole
    assert not list(tmp_path.glob("*.unfinished"))
    _, record = load_checkpoint(tmp_path / "member-random_channel-0")
    assert len(record["history"]) == 3
    assert same(load_checkpoint(tmp_path / PARTS[-1])[0], load_checkpoint(kept / PARTS[-1])[0])


def test_members_on_more_than_one_device_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"compute.devices is 2, but every member trains on one device"):
        trained(tmp_path, overrides=("compute.devices=2",))


def test_no_workers_are_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(RecipeError, match="workers is 0"):
        trained(tmp_path, workers=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("members.robust.count=3", 'members.robust.models=["small_cnn", {name = "small_cnn", widths = [0]}]'),
            r"^recipe digits: members\.robust\.models\[1\]: architecture 'small_cnn' cannot be built",
        ),
        (('model="nowhere.to_be_found:make"',), r"^recipe digits: model: factory nowhere.* there is no module nowhere"),
    ],
)
def test_a_network_that_cannot_be_made_is_refused_before_anything_is_trained(overrides, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        trained(tmp_path, overrides=overrides)
    assert not list(tmp_path.iterdir())


def test_networks_that_no_member_has_need_not_be_there(tmp_path):
    none = tuple(f"members.{name}.count=0" for name in NAMES)
    there, missing = "small_cnn", "nowhere.to_be_found:make"
    trained(tmp_path, overrides=(*none, f'members.robust.models=["{missing}"]', "plain.epochs=1"))
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["plain"]
    family = load_ensemble_recipe("digits", (f'members.robust.models=["{there}", "{missing}"]',)).members["robust"]
    assert family.model_copy(update={"count": 1}).networks() == {"models[0]": there}


def test_hardening_without_members_is_refused(tmp_path):
    recipe = load_recipe("digits", [f"members.{name}.count=0" for name in NAMES])
    with pytest.raises(RecipeError, match=r"no members; give members\.robust\.count"):
        train_components(recipe, recipe.load_data(), tmp_path, Reporter(Console(file=io.StringIO())))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("workers", "message"),
    [("0", "'0' is neither"), ("-2", "'-2' is neither"), ("two", "'two' is neither"), ("1.5", "neither a number")],
)
def test_workers_that_are_none_are_refused_in_one_line(workers, message, tmp_path, capsys):
    assert run(["harden", "digits", "-o", str(tmp_path / "m.onnx"), "--workers", workers]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())


def test_without_ray_the_command_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    """Where ray is not found, as where it is not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    assert run(["harden", "digits", "-o", str(tmp_path / "m.onnx"), "--workers", "ray"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--workers ray needs Ray, which is not installed; pip install '.[ray]' in a checkout" in error
    assert not list(tmp_path.iterdir())


ON_RAY = """
import os, sys
from functools import partial
from pathlib import Path
from s2ap_defend import RecipeError
from s2ap_defend.progress import Reporter
from s2ap_train.jobs import Job, check_workers, run_jobs
from s2ap_train.hardening.train import train_networks
from s2ap_train.recipe import load_ensemble_recipe

recipe = load_ensemble_recipe("digits", sys.argv[2:])
train_networks(recipe, recipe.load_data(), Path(sys.argv[1]), Reporter(), workers="ray")
assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
print("again")
train_networks(recipe, recipe.load_data(), Path(sys.argv[1]), Reporter(), workers="ray")
for function, arguments in ((check_workers, (0,)), (os._exit, (1,))):
    try:
        list(run_jobs([Job("part", function, partial(tuple, arguments))], "ray"))
    except RecipeError as error:
        print("refused:", error)
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install '.[ray]'")
def test_ray_trains_the_same_networks_without_a_shared_disk(kept, tmp_path):
    missing = {"plain", "member-random_channel-1"}
    for name in set(PARTS) - missing:
        shutil.copytree(kept / name, tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ON_RAY, str(tmp_path), *TINY],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    first, again = done.stdout.split("again\n")
    assert "training on Ray" in first
    lines = [line for line in first.splitlines() if line.startswith(("plain:", "member-"))]
    told = [line.split(":")[0] for line in lines if "reused" not in line]
    assert told[0] == "plain"
    assert sorted(told) == sorted(missing), "only what is missing is trained, and in order"
    assert all(f"{name}: reused" in again for name in PARTS)
    assert "refused: workers is 0; give a number from 1" in again
    assert "refused: Ray lost part: " in again
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == sorted(PARTS)
    assert equal_weights(kept, tmp_path)
