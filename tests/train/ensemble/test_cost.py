"""What members cost is known before they are trained, and a family that is too dear is refused with what would help."""

import pytest
from pydantic import TypeAdapter
from tests.train.toy_data import bars

from s2ap_defend import RecipeError
from s2ap_train.ensemble import Base, Family, check_cost
from s2ap_train.models import create
from s2ap_train.models.cost import flops
from s2ap_train.recipe import check_networks, load_recipe
from s2ap_train.training import Run, TrainingData

BASE = {"name": "small_cnn", "widths": [16, 16]}
SMALL = {"name": "small_cnn", "widths": [4, 8]}
DATA = TrainingData(*bars(), bars(40, seed=1), 4)
ROBUST = {"epochs": 1, "batch_size": 20, "lr": 0.1, "eps": 0.05, "attack_steps": 1, "validation_steps": 1}
NATURAL = {"loss": "natural", "eps": 0, "epochs": 1, "batch_size": 20, "lr": 0.1}
SHAPE = (1, 8, 8)


def new(table):
    return create(table, SHAPE, 4)


def pruned(*models, max_cost=None, **pruning):
    table = {"method": "s2ap", "training": ROBUST, "s2ap": {"warmup_epochs": 0}, **pruning}
    trainings = {"pretraining": ROBUST, "finetune": ROBUST}
    return family("pruned", models=list(models), pruning=table, max_cost=max_cost, count=len(models), **trainings)


def family(name, **settings):
    return TypeAdapter(Family).validate_python({"family": name, "count": 1, **settings})


def cost(network):
    return flops(network, SHAPE) / flops(new(BASE), SHAPE)


@pytest.mark.parametrize(
    "table",
    [
        pruned(SMALL, sparsity=0.5),
        pruned(BASE, structure="channel", sparsity=0.5),
        pruned(BASE, structure="channel", sparsity=0.3, method="magnitude"),
        pruned(BASE, structure="2:4", sparsity=0.5),
        family("random-channel", settings={"training": NATURAL}),
        family("l1-norm", settings={"training": NATURAL}),
        family("lottery-ticket", settings={"search": NATURAL, "training": NATURAL}),
    ],
    ids=["weights", "s2ap channels", "magnitude channels", "2:4", "random channels", "largest channels", "ticket"],
)
def test_a_member_has_the_shape_that_was_foretold(table) -> None:
    member = table.train(0, DATA, Base(BASE, 0, lambda: new(BASE)), run=Run(5)).model
    foretold = table.shipped(0, BASE, new, seed=5)
    assert flops(foretold, SHAPE) == flops(member, SHAPE)


def test_a_family_within_its_cost_is_taken_and_one_at_it_as_well() -> None:
    exact = cost(new(SMALL))
    check_cost(pruned(SMALL, SMALL, max_cost=exact), int, BASE, new)
    check_cost(pruned(BASE, max_cost=1.0), int, BASE, new)
    check_cost(pruned(BASE), int, BASE, new)


def test_the_dearest_member_of_a_family_decides() -> None:
    with pytest.raises(RecipeError, match=r"^member 1 would cost 1.000 of the FLOPs .*max_cost is 0.5; .*single zeros"):
        check_cost(pruned(SMALL, BASE, max_cost=0.5, sparsity=0.9), int, BASE, new)


def test_where_channels_are_removed_the_message_names_the_smallest_sparsity_that_is_enough() -> None:
    with pytest.raises(RecipeError, match=r"would cost 0.\d+ of .*pruning.sparsity 0.\d+ is enough") as caught:
        check_cost(pruned(BASE, structure="channel", sparsity=0.2, max_cost=0.25), int, BASE, new)
    enough = float(str(caught.value).split("pruning.sparsity ")[1].split()[0])
    check_cost(pruned(BASE, structure="channel", sparsity=enough, max_cost=0.25), int, BASE, new)
    with pytest.raises(RecipeError):
        check_cost(pruned(BASE, structure="channel", sparsity=enough - 0.01, max_cost=0.25), int, BASE, new)


def test_a_cost_that_no_sparsity_reaches_asks_for_a_smaller_network() -> None:
    with pytest.raises(RecipeError, match=r"take a smaller network in models$"):
        check_cost(pruned(BASE, structure="channel", sparsity=0.2, max_cost=1e-4), int, BASE, new)


def test_a_method_that_learns_its_shares_cannot_promise_a_cost() -> None:
    learned = pruned(BASE, structure="channel", base="harp", sparsity=0.5, max_cost=0.9)
    with pytest.raises(RecipeError, match="learns how much each layer keeps; take one that"):
        check_cost(learned, int, BASE, new)


def test_members_of_the_plain_network_s_shape_cost_what_it_costs() -> None:
    with pytest.raises(RecipeError, match=r"would cost 1.000 .*take a structured family"):
        check_cost(family("mutation", max_cost=0.25), int, BASE, new)
    with pytest.raises(RecipeError, match=r"lower settings.keep_mean and settings.keep_high"):
        check_cost(family("random-channel", settings={"training": NATURAL}, max_cost=0.05), int, BASE, new)


def test_a_recipe_names_the_family_that_is_too_dear() -> None:
    recipe = load_recipe("digits", ("members.robust.max_cost=0.25",))
    with pytest.raises(RecipeError, match=r"^recipe digits: members.robust: member 0 would cost 0.\d+ of the FLOPs"):
        check_networks(recipe, (1, 8, 8), 10)


def test_a_limit_of_cost_must_be_above_zero() -> None:
    with pytest.raises(RecipeError, match=r"members.robust.max_cost is 0"):
        load_recipe("digits", ("members.robust.max_cost=0",))
