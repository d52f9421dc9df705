"""Where the parts of a hardening are trained, and that they come back to the CPU as they are exported."""

import io
import json

import pytest
import torch
from rich.console import Console

from s2ap_defend import RecipeError
from s2ap_defend.progress import Reporter
from s2ap_train.hardening.parts import PartList
from s2ap_train.hardening.train import SCORE_REPORT, train_components
from s2ap_train.recipe import load_ensemble_recipe, load_recipe
from s2ap_train.storage.parts import PartStore

COUNTS = {"mutation": 1, "random_channel": 1}
TINY = [
    'model={name = "small_cnn", widths = [4, 6]}',
    "plain.epochs=1",
    "adversarial.epochs=1",
    "adversarial.attack_steps=1",
    "pruning.training.epochs=1",
    "pruning.s2ap.warmup_epochs=0",
    "finetune.epochs=1",
    "members.random_channel.settings.training.epochs=1",
    "score_model.epochs=1",
    "score_model.width=8",
    *(f"members.{name}.count={COUNTS.get(name, 0)}" for name in load_ensemble_recipe("digits").members),
]
MIXED = 'compute={accelerator = "cpu", precision = "bf16"}'


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


def reported(recipe, work):
    text = io.StringIO()
    return train_components(recipe, recipe.load_data(), work, Reporter(Console(file=text, width=200)), workers=1), text


@pytest.fixture(scope="module")
def parts(work):
    """All parts, trained in this process, in bfloat16 and in the memory layout of GPUs."""
    recipe = load_recipe("digits", [*TINY, MIXED])
    assert recipe.compute.channels_last
    found, _ = reported(recipe, work)
    return found


def modules_of(parts):
    assert parts.members[0] is parts.pruned  # the first juror
    return [parts.score_model, *(n.model for n in (parts.plain, parts.adversarial, *parts.members))]


def test_parts_come_back_to_the_cpu_in_float32_and_in_the_memory_layout_of_those_that_are_reloaded(parts, work):
    reloaded, _ = reported(load_recipe("digits", [*TINY, MIXED]), work)
    assert len(modules_of(parts)) == 6
    for module, again in zip(modules_of(parts), modules_of(reloaded), strict=True):
        expected = again.state_dict()
        for name, value in module.state_dict().items():
            assert value.device.type == "cpu"
            assert value.stride() == expected[name].stride(), name
            assert value.dtype in {torch.float32, torch.int64}, name
            assert torch.equal(value, expected[name])
        assert not module.training


def test_the_work_folder_reports_the_score_model_once(parts, work):
    report = work / SCORE_REPORT / "report.html"
    assert "Score model of digits" in report.read_text()
    metrics = json.loads((work / SCORE_REPORT / "metrics.json").read_text())
    assert metrics["precision"] == "bf16"
    assert metrics["parameters"] == sum(p.numel() for p in parts.score_model.parameters())
    before = report.stat().st_mtime_ns
    again, text = reported(load_recipe("digits", [*TINY, MIXED]), work)
    assert "score-model: reused" in text.getvalue()
    assert report.stat().st_mtime_ns == before
    assert torch.equal(again.score_model.head.weight, parts.score_model.head.weight)


def test_what_was_trained_in_another_precision_is_not_reused(parts, work):
    recipe = load_recipe("digits", TINY)
    assert (recipe.compute.accelerator, recipe.compute.precision) == ("cpu", "32"), "harden's default"
    store = PartStore(work, Reporter(Console(file=io.StringIO())))
    assert [store.read(part) for part in PartList(recipe, recipe.load_data()).all()] == [None] * 6


def test_parts_are_not_shared_by_several_devices(tmp_path):
    recipe = load_recipe("digits", [*TINY, 'compute={accelerator = "cpu", devices = 2}'])
    with pytest.raises(RecipeError, match=r"compute.devices is 2, but every member trains on one device"):
        train_components(recipe, recipe.load_data(), tmp_path, Reporter(Console(file=io.StringIO())))
    assert not list(tmp_path.iterdir())


def test_a_score_model_that_does_not_fit_the_images_is_refused_before_anything_is_trained(tmp_path):
    recipe = load_recipe("digits", [*TINY, "score_model.multipliers=[1, 1, 1, 1, 1]"])
    with pytest.raises(RecipeError, match="recipe digits: score_model: images of 8x8 cannot be halved 4 times"):
        train_components(recipe, recipe.load_data(), tmp_path, Reporter(Console(file=io.StringIO())))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
def test_parts_trained_on_a_gpu_come_back_to_the_cpu(tmp_path):
    recipe = load_recipe("digits", [*TINY, 'compute={accelerator = "cuda", precision = "16"}'])
    found, _ = reported(recipe, tmp_path)
    modules = [found.score_model, *(n.model for n in (found.plain, found.adversarial, found.pruned, *found.members))]
    assert {value.device.type for module in modules for value in module.state_dict().values()} == {"cpu"}
