import json
import math
from dataclasses import replace

import numpy as np
import pytest
from tests.train.made_evaluation import PASSED, attack, made_evaluation

from s2ap_train.redteam.ablation.names import PRUNED
from s2ap_train.redteam.report.console import to_json
from s2ap_train.statistics.detection import RocArea, Share


def test_json_keeps_the_keys_that_are_an_interface_and_reads_back():
    document = json.loads(json.dumps(to_json(made_evaluation()), allow_nan=False))
    for figures in (document, document["bare"]):
        for key in ("attack_success", "flagged", "corrected", "abstained", "members_used", "attack_success_interval"):
            assert key in figures["attacks"]["pgd"]
        for key in ("accuracy", "flagged", "abstained", "members_used"):
            assert key in figures["clean"]
    assert document["attacks"]["pgd"]["attack_success"] == 4 / 120
    assert document["bare"]["attacks"]["pgd"]["attack_success"] == 111 / 120
    assert "agreement-4" not in document["bare"]["attacks"]
    assert document["attacks"]["correction"]["goal"] == "wrong label"
    assert document["attacks"]["correction"]["reached"] == 14 / 120
    assert document["worst_case"]["robust_accuracy"] == 110 / 120
    assert document["checks"][1]["result"] == "not judged"
    kept = {"bare": (3, 3), "pruned": (98, 98), "pruned_confidence": (98, 101)}
    for name, figures in {**{name: document[name] for name in kept}, "file": document}.items():
        label, robust = kept.get(name, (106, 110))
        assert figures["worst_case"]["label_accuracy"] == label / 120
        assert figures["worst_case"]["robust_accuracy"] == robust / 120
        for key in ("label_accuracy_interval", "robust_accuracy_interval"):
            low, high = figures["worst_case"][key]
            assert low < figures["worst_case"][key.removesuffix("_interval")] < high
        assert figures["clean"].keys() >= {"accuracy", "flagged", "members_used"}
    first = document["comparisons"][1]
    assert (first["baseline"], first["measure"], first["standing"]) == (PRUNED, "label right", "above")
    assert first["effect"]["gained"] == 8
    assert [line["result"] for line in document["must_hold"]] == ["does not hold", "holds", "undecided"]
    assert document["must_hold"][0]["found"] == {"members_used": 4.3}
    assert document["members_used"]["slow-down"] == [12] * 118 + [4, 5]
    assert document["configuration"]["budget"] == {"steps": 20, "restarts": 1}
    assert "gallery" not in document
    assert document["masked"] is False
    assert document["verdict"]["level"] == "measured"


def test_json_says_null_for_baselines_that_were_not_measured():
    document = to_json(made_evaluation(ablation=(), comparisons=()))
    assert document["pruned"] is None
    assert document["pruned_confidence"] is None
    assert document["comparisons"] == []


def test_json_says_null_for_what_is_not_a_number_and_takes_numbers_of_numpy():
    found = made_evaluation().detection
    empty = Share.of(np.zeros(0, dtype=bool))
    row = replace(found.rows[0], area=RocArea(math.nan, math.nan, math.nan), at_1_percent=empty)
    odd = replace(PASSED, found={"ratio": math.inf, "share": np.float32(0.5)})
    evaluation = made_evaluation(
        detection=replace(found, rows=(row,), false_alarms_wrong=empty),
        checks=(odd,),
        attacks=(attack("pgd", 4, defended=replace(attack("pgd", 4).defended, configuration={"n": np.int64(3)})),),
    )
    document = json.loads(json.dumps(to_json(evaluation), allow_nan=False))
    assert document["detection"]["false_alarms_wrong"]["value"] is None
    assert document["detection"]["rows"][0]["area"]["value"] is None
    assert document["checks"][0]["found"] == {"ratio": None, "share": 0.5}
    assert document["attacks"]["pgd"]["configuration"] == {"n": 3}


def test_json_refuses_what_it_cannot_hold():
    odd = replace(attack("pgd", 4).defended, configuration={"device": object()})
    with pytest.raises(TypeError, match="holds a object"):
        to_json(made_evaluation(attacks=(attack("pgd", 4, defended=odd),)))
