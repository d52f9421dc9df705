import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from s2ap_defend.errors import RecipeError
from s2ap_train.ensemble.pruned import PrunedFamily
from s2ap_train.models import create
from s2ap_train.models.cost import flops

TINY = {
    "data": '{source = "digits", train_limit = 300}',
    "model.widths": "[4, 4, 8]",
    "adversarial.epochs": 1,
    "pruning.training.epochs": 2,
    "finetune.epochs": 1,
    "members.robust.models": '[{name = "small_cnn", widths = [4, 4, 8]}]',
    "members.robust.pretraining.epochs": 1,
    "members.robust.pruning.training.epochs": 2,
    "members.robust.finetune.epochs": 1,
}
TRAININGS = ("adversarial", "pruning.training", "finetune")
TRAININGS += tuple(f"members.robust.{one}" for one in ("pretraining", "pruning.training", "finetune"))
TINY |= {f"{training}.attack_steps": 1 for training in TRAININGS}


TOGETHER = ("longer", "jury attack", "diverse predictions", "apart gradients", "distilled")


def start(work: Path, *more: str) -> Result:
    from jurors import main

    sets = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    few = [
        "--kinds",
        f"sparsity,{','.join(TOGETHER)}",
        "--epochs",
        "1",
        "--samples",
        "12",
        "--workers",
        "1",
        "--work-dir",
        str(work),
    ]
    return CliRunner().invoke(main, ["digits", *few, *more, *sets])


@pytest.fixture(scope="module")
def measured(benchmarks: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result, dict[str, Any]]:
    work = tmp_path_factory.mktemp("jurors")
    result = start(work, "--json", str(work / "out.json"))
    assert result.exit_code == 0, result.output
    return work, result, json.loads((work / "out.json").read_text())


def test_every_kind_is_compared_with_r_and_with_as_many_plain_seeds(
    measured: tuple[Path, Result, dict[str, Any]],
) -> None:
    _, result, document = measured
    rows = {(one["kind"], one["answer"]): one for one in document["rows"]}
    answers = ("vote", "mean probability")
    assert set(rows) == {
        ("seeds", "r alone"),
        *((kind, answer) for kind in ("seeds", "sparsity", *TOGETHER) for answer in answers),
    }
    alone = rows["seeds", "r alone"]
    assert alone["cost"] == 1.0
    for (kind, answer), row in rows.items():
        against = row["against"]
        assert against["samples"] == document["samples"] == 12
        assert (against["before"], against["after"]) == pytest.approx(
            (alone["label_right"], row["label_right"]), abs=1e-5
        )
        assert row["label_right"] <= row["clean"]
        if kind != "seeds":
            control = "seeds" if kind in ("sparsity", "longer") else "longer"
            assert row["control"] == control
            assert row["against_control"]["before"] == rows[control, answer]["label_right"]
    assert len({rows[kind, "vote"]["cost"] for kind, _ in rows}) == 1, "zeros cost what other weights do"
    assert "| sparsity" in result.output
    assert document["epochs_together"] == 1


def test_a_second_start_trains_and_attacks_nothing(measured: tuple[Path, Result, dict[str, Any]]) -> None:
    work, _, document = measured
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")}
    assert len(before) > 10
    again = start(work, "--json", str(work / "again.json"))
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")} == before
    assert json.loads((work / "again.json").read_text())["rows"] == document["rows"]


def test_jurors_of_a_kind_differ_in_what_it_says_and_in_their_seeds_alone(benchmarks: None) -> None:
    from jurors_kinds import JURORS, juror_recipes

    def members(kind: str) -> list[PrunedFamily]:
        return [one.members["robust"] for one, _ in juror_recipes("digits", (), kind)]  # type: ignore[misc]

    seeds, eps = members("seeds"), members("eps")
    assert len(seeds) == len(eps) == JURORS
    assert [one.first_seed for one in seeds] == [one.first_seed for one in eps] == [100, 101, 102, 103]
    assert len({one.model_copy(update={"first_seed": 0}).model_dump_json() for one in seeds}) == 1
    assert eps[1] == seeds[1], "the second is trained for the family's eps"
    for phase in ("pretraining", "finetune"):
        assert [getattr(one, phase).eps for one in eps] == pytest.approx([0.144, 0.18, 0.216, 0.252])
    assert [one.pruning.sparsity for one in members("sparsity")] == [0.2, 0.4, 0.6, 0.8]


@pytest.mark.parametrize("kind", ["architecture", "structure"])
def test_other_shapes_cost_what_the_family_does_as_nearly_as_whole_channels_allow(benchmarks: None, kind: str) -> None:
    from jurors_kinds import juror_recipes

    def cost(table: Any) -> int:
        made = create(dict(table) if not isinstance(table, str) else table, (1, 8, 8), 10)
        return flops(made, (1, 8, 8))

    costs = []
    for recipe, _ in juror_recipes("digits", (), kind):
        family = recipe.members["robust"]
        shipped = family.shipped(0, recipe.model, lambda table: create(table, (1, 8, 8), 10), seed=0)
        costs.append(flops(shipped, (1, 8, 8)))
    assert costs[0] == cost({"name": "small_cnn", "widths": [12, 12, 12, 24, 24, 32]})
    # a channel more or less in each of six layers of 12 or more changes the cost by a twelfth, twice, at the most
    assert all(abs(one / costs[0] - 1) < 2 / 12 for one in costs), costs


@pytest.fixture(scope="module")
def four(benchmarks: None) -> tuple[Any, list[Any], Any, Any]:
    """(module, untrained jurors, images, labels)"""
    import jurors_together
    import torch

    jurors = [create({"name": "small_cnn", "widths": [6, 6, 8]}, (1, 8, 8), 10, seed=seed) for seed in range(4)]
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return jurors_together, jurors, images, torch.arange(6)


def loss_of(
    four: tuple[Any, list[Any], Any, Any], kind: str, jurors: list[Any], *, eps: float = 0.1, **weights: float
) -> float:
    import torch

    from s2ap_train.training.config import TrainingConfig

    module, _, images, labels = four
    for one in jurors:
        one.eval()  # statistics of a batch would differ from call to call
    config = TrainingConfig(eps=eps, attack_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in weights.items():
            patch.setattr(module, name, value)
        return float(module.TOGETHER[kind](jurors, images, labels, config, torch.Generator().manual_seed(0)).detach())


def test_losses_that_push_jurors_apart_are_larger_where_jurors_are_alike(
    four: tuple[Any, list[Any], Any, Any],
) -> None:
    jurors = four[1]
    alike = [jurors[0]] * 4
    for kind, weights in (
        ("diverse predictions", {"ENTROPY": 0.0, "DIVERSITY": 1.0}),
        ("apart gradients", {"ALIGNMENT": 1.0}),
    ):
        without = dict.fromkeys(weights, 0.0)
        apart, same = (
            loss_of(four, kind, some, **weights) - loss_of(four, kind, some, **without) for some in (jurors, alike)
        )
        assert same > apart + 0.1, (kind, same, apart)
    here = [loss_of(four, "apart gradients", alike, eps=1e-6, ALIGNMENT=weight) for weight in (0.0, 1.0)]
    assert here[1] - here[0] == pytest.approx(1.0, abs=1e-3)  # the cosine of a gradient with itself


def test_jurors_trained_on_together_learn_and_what_was_pruned_stays_away(
    four: tuple[Any, list[Any], Any, Any], tmp_path: Path
) -> None:
    import torch

    from s2ap_train.recipe import load_recipe
    from s2ap_train.training.config import TrainingConfig

    module, jurors, _, _ = four
    with torch.no_grad():
        jurors[0].blocks[1].convolution.weight[:, 0] = 0.0
    splits, config = (
        load_recipe("digits").load_data(),
        TrainingConfig(epochs=2, lr=0.1, batch_size=32, eps=0.02, attack_steps=1),
    )
    before = [{name: value.clone() for name, value in one.state_dict().items()} for one in jurors]
    trained = module.trained_together("jury attack", jurors, splits, config, 0, tmp_path)
    again = module.trained_together("jury attack", jurors, splits, config, 0, tmp_path)
    images, labels = torch.from_numpy(splits.validation.images), torch.from_numpy(splits.validation.labels)
    for old, new, read in zip(jurors, trained, again, strict=True):
        right = [float((one(images).argmax(1) == labels).float().mean()) for one in (old.eval(), new)]
        assert right[1] > right[0] + 0.2
        assert all(torch.equal(value, read.state_dict()[name]) for name, value in new.state_dict().items())
    assert not trained[0].blocks[1].convolution.weight[:, 0].any()
    for one, kept in zip(jurors, before, strict=True):
        assert all(torch.equal(value, kept[name]) for name, value in one.state_dict().items())


def test_features_are_distilled_from_jurors_with_blocks_only(four: tuple[Any, list[Any], Any, Any]) -> None:
    with pytest.raises(RecipeError, match="needs jurors with blocks, such as small_cnn; found ResNet"):
        loss_of(four, "distilled", [create("resnet18", (1, 8, 8), 10)] * 2)


def test_kinds_that_a_network_cannot_have_and_names_that_are_none_are_refused(benchmarks: None, tmp_path: Path) -> None:
    from jurors_kinds import juror_recipes

    with pytest.raises(RecipeError, match="needs a network with three widths or more"):
        juror_recipes("digits", ('members.robust.models=["resnet18"]',), "architecture")
    with pytest.raises(RecipeError, match="has no jurors"):
        juror_recipes("digits", ("members.robust.count=0",), "seeds")
    result = start(tmp_path / "w", "--kinds", "size")
    assert result.exit_code == 1
    assert "kind 'size' is not known; choose from seeds" in result.output
