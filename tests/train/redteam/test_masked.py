"""Whole red teams on planted defences: what hides from gradients is called masked, what does not is not."""

from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tests.train.planted_defences import (
    BUDGET,
    REACHABLE,
    checked,
    detached,
    flags_everything,
    honest,
    masked,
    rounding,
    shattered,
)

from s2ap_defend.model_file import open_model_file, write_model_file
from s2ap_export.graph.compose import compose
from s2ap_train.data import ImageSet
from s2ap_train.onnx_graphs.onnx_module import torch_stage
from s2ap_train.redteam.attacks.attack import Task
from s2ap_train.redteam.checks.binarisation import binarisation
from s2ap_train.redteam.checks.checks import Successes, sanity_checks
from s2ap_train.redteam.checks.plausibility import plausibility_check
from s2ap_train.redteam.probes import Probe, gradients, judge_probes
from s2ap_train.redteam.target import open_targets


@cache
def found(make, *arguments):
    return checked(make(*arguments))


def test_an_honest_defence_is_not_called_masked_and_breaks_exactly_where_its_margin_ends():
    checks, kept = found(honest)
    assert not masked(checks)
    assert {name for name, check in checks.items() if check.passed is not True} == {"converged"}  # 20 steps are too few
    np.testing.assert_array_equal(~kept, REACHABLE)


@pytest.mark.parametrize("levels", [255, 7])
def test_rounding_is_called_masked_by_what_is_missing_and_by_who_wins_without_it(levels):
    checks, _ = found(rounding, levels)
    assert masked(checks) >= {
        "gradients exist",
        "adaptive",
        "black box",
        "binarisation test",
        "unbounded, by gradients",
    }


def test_a_detached_step_is_called_masked():
    checks, _ = found(detached)
    assert masked(checks) >= {"gradients exist", "adaptive", "black box", "binarisation test"}


def test_a_shattered_gradient_exists_and_is_still_called_masked():
    checks, _ = found(shattered)
    assert checks["gradients exist"].passed
    assert masked(checks) >= {"adaptive", "black box"}


def test_a_defence_that_flags_everything_keeps_everything_and_is_not_believed():
    checks, kept = found(flags_everything)
    assert kept.all()
    assert masked(checks) == {"unbounded", "unbounded, by gradients"}
    assert "refuses what it should answer" in checks["unbounded"].meaning
    assert checks["plausibility at half eps"].passed is False


def test_the_white_box_without_gradients_does_not_even_reach_what_the_black_box_does():
    """What the masked defence would have looked like to whoever ran the gradient attack alone."""
    checks, _ = found(rounding, 255)
    kept = checks["black box"].found
    assert kept["accuracy_after_square"] < 0.7
    assert kept["accuracy_after_1 that know everything"] > 0.9


def rounded(purifier, levels):
    """The purifier's stage with its output rounded to so many steps."""
    return _after(
        purifier,
        lambda value, constant: [
            ("Mul", [value, constant(levels)], {}),
            ("Round", [0], {}),
            ("Div", [1, constant(levels)], {}),
        ],
    )


def cut_off(purifier, levels):
    """The same through integers, which no gradient passes."""
    return _after(
        purifier,
        lambda value, constant: [
            ("Mul", [value, constant(levels)], {}),
            ("Round", [0], {}),
            ("Cast", [1], {"to": TensorProto.INT32}),
            ("Cast", [2], {"to": TensorProto.FLOAT}),
            ("Div", [3, constant(levels)], {}),
        ],
    )


def _after(purifier, steps):
    stage = onnx.ModelProto()
    stage.CopyFrom(purifier)
    for node in stage.graph.node:
        node.output[:] = ["purifier/plain" if name == "purified" else name for name in node.output]
        node.input[:] = ["purifier/plain" if name == "purified" else name for name in node.input]

    def constant(value):
        name = f"purifier/level_{len(stage.graph.initializer)}"
        stage.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [], [value]))
        return name

    plan = steps("purifier/plain", constant)
    names = [f"purifier/step_{i}" for i in range(len(plan) - 1)] + ["purified"]
    for (operator, inputs, attributes), name in zip(plan, names, strict=True):
        reads = [names[i] if isinstance(i, int) else i for i in inputs]
        stage.graph.node.append(
            helper.make_node(operator, reads, [name], name=f"purifier/{operator.lower()}_{name}", **attributes)
        )
    onnx.checker.check_model(stage, full_check=True)
    return stage


@pytest.fixture(scope="module", params=["as it is", "rounded", "cut off"])
def file_case(request, tiny_stages, tiny_model_path, tmp_path_factory):
    """(whether it is masked, the defended file)."""
    if request.param == "as it is":
        return False, tiny_model_path
    purifier, classifier, members = tiny_stages
    masking = {"rounded": rounded, "cut off": cut_off}[request.param](purifier, 255.0)
    manifest = open_model_file(tiny_model_path).manifest
    sees, purify = [member.sees for member in manifest.members], manifest.decision.purify
    path = tmp_path_factory.mktemp("masked") / "masked.onnx"
    write_model_file(
        compose(masking, classifier, members, manifest.to_test(), sees=sees, purify=purify), manifest, path
    )
    return True, path


def test_a_file_whose_purifier_rounds_is_reported_as_masked_and_an_honest_one_is_not(file_case):
    """Labels are those that the file answers to the clean images, so it looks perfect before the attack."""
    is_masked, path = file_case
    defended, _ = open_targets(path)
    images = np.random.default_rng(3).random((10, 1, 8, 8), dtype=np.float32)
    data = ImageSet(images, defended.system(images, np.zeros(10, dtype=np.int64)).label)
    task = Task(data, 0.1, 0.0, 0, 0, replace(BUDGET, steps=10))
    probes = [Probe("gradients", 4, gradients), Probe("binarisation", 10, binarisation)]
    probed = judge_probes(defended.system, data, probes, {probe.name: probe(defended, task) for probe in probes})
    clean = defended.system(data.images, data.labels).success
    plausibility = plausibility_check(~clean, data="noise", eps=0.1)
    judged = sanity_checks(Successes({}, {}, clean), probed, plausibility=plausibility)
    checks = {check.name: check for check in judged}
    assert checks["gradients exist"].passed is not is_masked
    behind = [member.sees for member in open_model_file(path).manifest.members].count("purified")
    assert 0 < behind < 6, "members that see the image as it came have their gradients in any case"
    assert checks["gradients exist"].found["members_without_gradient"] == behind * is_masked
    assert checks["binarisation test"].passed is not is_masked
    assert bool(masked(checks)) is is_masked


def test_the_twin_of_the_masked_file_still_answers_as_the_file_does(tiny_stages):
    """Otherwise a check could fail for another reason than the missing gradient."""
    purifier = tiny_stages[0]
    image = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plain, hidden = (
        torch_stage(stage, torch.device("cpu"))(image)[0] for stage in (purifier, rounded(purifier, 255.0))
    )
    assert 0 < float((plain - hidden).abs().max()) <= 0.5 / 255 + 1e-6
