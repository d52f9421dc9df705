"""A plain classifier that costs what the defence costs."""

import io

import numpy as np
import pytest
from rich.console import Console

from s2ap_defend.errors import RecipeError
from s2ap_defend.model_file import open_model_file
from s2ap_defend.progress import Reporter
from s2ap_train.models import SmallCNN, create
from s2ap_train.models.cost import flops
from s2ap_train.recipe import load_recipe
from s2ap_train.redteam.ablation.wider import defence_flops, wider_classifier, wider_network
from s2ap_train.storage.parts import PartStore

SHAPE = (1, 8, 8)


def test_the_cost_of_a_defence_is_that_of_its_stages_and_of_whole_waves_of_members(tiny_model_path):
    # Waves of 2, 3 and 1: whoever asks three members pays five. All seven networks are alike.
    network = flops(SmallCNN(1, 10, (4, 6, 6, 8), 8), SHAPE)
    file = open_model_file(tiny_model_path)
    costs = [defence_flops(file, np.array(used)) for used in ([2], [3], [5], [6], [1, 6])]
    assert np.diff(costs[:4]).tolist() == [3 * network, 0, network]
    assert costs[4] == (costs[0] + costs[3]) / 2
    assert costs[0] > 3 * network, "a purifier comes before the classifier and two members"


@pytest.mark.parametrize("wanted", [2e5, 3e6])
def test_the_wider_network_costs_what_is_wanted_as_nearly_as_whole_channels_allow(wanted):
    recipe = load_recipe("digits")
    table = wider_network(recipe, SHAPE, 10, wanted)

    def distance(width):
        return abs(np.log(flops(create({**table, "width": width}, SHAPE, 10), SHAPE) / wanted))

    widths = np.geomspace(table["width"] / 1.3, table["width"] * 1.3, 15)
    assert distance(table["width"]) <= min(distance(float(width)) for width in widths) + 1e-12
    assert distance(table["width"]) < 0.3


def test_what_no_width_costs_is_refused():
    with pytest.raises(RecipeError, match=r"no width of the recipe's network.* costs 1 floating .* leave the wider"):
        wider_network(load_recipe("digits"), SHAPE, 10, 1.0)


def test_the_wider_classifier_is_trained_adversarially_once(tmp_path):
    recipe = load_recipe(
        "digits", ["adversarial.epochs=1", "adversarial.attack_steps=1", "adversarial.validate_every=1"]
    )
    splits, told = recipe.load_data(), []
    networks = []
    for _ in range(2):
        text = io.StringIO()
        store = PartStore(tmp_path, Reporter(Console(file=text, width=200)))
        networks.append(wider_classifier(recipe, splits, store, 2e5))
        told.append(text.getvalue())
    assert "reused" not in told[0]
    assert "wider: reused" in told[1]
    first, second = networks
    assert first.adversarially_trained
    assert first.flops == second.flops == pytest.approx(2e5, rel=0.3)
    assert [path.name for path in tmp_path.iterdir()] == ["wider"]
