"""A plain classifier that costs what the defence costs."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.errors import RecipeError
from s2ap_defend.model_file import open_model_file
from s2ap_defend.progress import Reporter
from s2ap_defend.sequential import SequentialTest, StageAnswers
from s2ap_train.calibration.flops import StageFlops, clean_flops
from s2ap_train.models import SmallCNN, create
from s2ap_train.models.cost import flops
from s2ap_train.recipe import load_recipe
from s2ap_train.redteam.ablation.compute import file_flops
from s2ap_train.redteam.ablation.wider import defence_flops, wider_classifier, wider_network
from s2ap_train.storage.parts import PartStore

SHAPE = (1, 8, 8)


def test_the_cost_of_a_defence_is_that_of_its_stages_and_of_whole_waves_of_members(tiny_model_path, random_images):
    network = flops(SmallCNN(1, 10, (4, 6, 6, 8), 8), SHAPE)  # all networks of this file are alike
    file = open_model_file(tiny_model_path)
    stages = file_flops(file)
    assert stages.classifier == network
    assert stages.members.tolist() == [network] * len(file.manifest.members)
    assert stages.purifier > network
    waves = np.cumsum(file.manifest.test.waves)
    used = DefendedClassifier.load(tiny_model_path, device="cpu", threads=1)(random_images).members_used
    asked = waves[np.searchsorted(waves, used)]  # whoever asks one member of a wave pays the wave
    assert (asked > used).any()
    found = defence_flops(file, random_images)
    if file.manifest.decision.purify == "always":
        assert found == pytest.approx(stages.purifier + network * (1 + asked.mean()))


def test_where_only_the_suspicious_are_purified_the_classifier_is_asked_again_for_them():
    # Members 1 and 2, one a wave, the first the opening; clean where it agrees with class 0 of the raw classifier.
    test = SequentialTest(
        evidence="margin",
        edges=np.full((2, 1), 1e-4, dtype=np.float32),
        increments=np.array([[-1.0, 2.0]] * 2),
        lower=np.array([-1.0, -np.inf]),
        upper=np.array([np.inf, 1.5]),
        final_threshold=np.inf,
        waves=(1, 1),
        vote_weights=np.ones(2),
        answer="accurate",
    )
    zero, one = (np.log(np.array([p, 1 - p], dtype=np.float32)) for p in (0.9, 0.1))
    said = StageAnswers(
        classifier=np.stack([zero, zero]), members=np.array([[zero, one], [zero, one]]), on_raw=np.stack([zero, zero])
    )
    # the first image is accepted raw: classifier and first member; the second pays purifier, classifier and both
    assert clean_flops(StageFlops(1000, 100, np.array([10, 1])), test, said) == (110 + 1000 + 200 + 11) / 2
    always = replace(said, on_raw=None)
    assert clean_flops(StageFlops(1000, 100, np.array([10, 1])), test, always) == (1110 + 1111) / 2


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
