"""A file that loses to its own first juror, from the networks to the sentence that says so.

Class 1 is brighter in the upper half by far, and in the lower half by a hair. The classifier reads the lower half and
is right on every image, as long as nobody changes it; the juror reads the upper half, out of reach of the attack.
"""

import io

import numpy as np
import pytest
from onnx import TensorProto, helper
from rich.console import Console

from s2ap_defend.manifest import DecisionDescription
from s2ap_defend.model_file import open_model_file, write_model_file
from s2ap_defend.progress import Reporter
from s2ap_defend.stages import CLASSIFIER, member_scope
from s2ap_export.graph.builder import GraphBuilder
from s2ap_export.graph.compose import compose
from s2ap_export.tracing.trace import trace_purifier
from s2ap_train.adaptive import AdaptiveBudget
from s2ap_train.data import ImageSet
from s2ap_train.purifier import Purification, UNet, hadamard_bank
from s2ap_train.redteam.ablation.names import BARE, PRUNED
from s2ap_train.redteam.attacks.catalogue import chosen_attacks
from s2ap_train.redteam.evaluation import evaluate_file
from s2ap_train.redteam.plan import Plan
from s2ap_train.redteam.report.verdict import verdict

SHAPE, EPS = (1, 4, 4), 0.05
UPPER, LOWER = np.repeat([1.0, 0.0], 8), np.repeat([0.0, 1.0], 8)
OFF = Purification(steps=0, bank_size=2)


def stage(scope, reads, slope):
    """A network whose margin of class 1 is `slope` times the mean of what it reads less .5, in nats."""
    weights = np.stack([0 * reads, slope * reads / reads.sum()], axis=1).astype(np.float32)
    build = GraphBuilder(scope)
    logits = build.op("MatMul", build.op("Flatten", "image"), build.constant(weights))
    logits = build.op("Add", logits, build.constant(np.array([0.0, -slope / 2], dtype=np.float32)))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *SHAPE])
    said = helper.make_tensor_value_info("log_probabilities", TensorProto.FLOAT, ["batch", 2])
    return build.model([image], [(build.op("LogSoftmax", logits, axis=1), said)])


@pytest.fixture(scope="module")
def data():
    """24 images, half of each class: .2 apart from grey above, .01 below."""
    labels = np.tile([0, 1], 12)
    sign = np.where(labels, 1.0, -1.0)[:, None]
    flat = 0.5 + sign * (0.2 * UPPER + 0.01 * LOWER) + np.random.default_rng(0).uniform(-0.002, 0.002, (24, 16))
    return ImageSet(flat.reshape(24, *SHAPE).astype(np.float32), labels)


@pytest.fixture(scope="module")
def made(tiny_model_path):
    """Write the file with an answer: one juror, and a test that never flags."""

    def write(path, answer, share):
        tiny = open_model_file(tiny_model_path).manifest
        decision = DecisionDescription(answer=answer, jury_share=share, amplification=1.0, purify="off", frontier=None)
        tables = tiny.test.model_copy(
            update={
                "edges": tiny.test.edges[:1],
                "increments": tiny.test.increments[:1],
                "lower": (None,),
                "upper": (None,),
                "truncation": "clean",
                "waves": (1,),
                "opening": 1,
                "signals": (),
                "await_vote": False,
            }
        )
        juror = tiny.members[0].model_copy(update={"role": "juror", "sees": "raw", "vote_weight": 1.0})
        off = {"steps": 0, "sigmas": (), "rho": 0.0, "bank_size": 2}
        manifest = tiny.model_copy(
            update={
                "input": tiny.input.model_copy(update={"height": 4, "width": 4}),
                "classes": ("dark", "bright"),
                "members": (juror,),
                "decision": decision,
                "test": tables,
                "purifier": tiny.purifier.model_copy(update=off),
            }
        )
        purifier = trace_purifier(UNet(1, 8, (1,), seed=0), hadamard_bank(2, SHAPE, 0), OFF, SHAPE)
        model = compose(
            purifier,
            stage(CLASSIFIER, LOWER, 400.0),
            [stage(member_scope(0), UPPER, 40.0)],
            manifest.to_test(),
            sees=["raw"],
            purify="off",
        )
        write_model_file(model, manifest, path)
        return path

    return write


def evaluated(path, data):
    budget = AdaptiveBudget(steps=10, cheap_steps=10, restarts=1, targets=1, square_queries=10, decision_queries=10)
    attacks = chosen_attacks("pgd,apgd-ce,unrolled-pgd")[1]
    plan = Plan("quick", attacks, budget, EPS, 0.1, 3, 0, "quick")
    reporter = Reporter(Console(file=io.StringIO(), width=200))
    return evaluate_file(path, data, plan, folder=None, reporter=reporter, workers=1)


def test_a_natural_classifier_that_answers_loses_every_label_and_the_verdict_names_the_first_juror(
    made, data, tmp_path
):
    found = evaluated(made(tmp_path / "loses.onnx", "accurate", 1.0), data)
    assert found.clean.accuracy == found.row(PRUNED).clean_accuracy == 1.0
    assert found.worst_case.label_accuracy == found.row(BARE).worst_case.label_accuracy == 0.0
    assert found.row(PRUNED).worst_case.label_accuracy == 1.0
    said = verdict(found)
    assert said.title == "Below its own robust classifier alone, by label"
    assert "from 100.0% to 0.0% (-100.0 points" in said.text
    assert "of 24 images 0 gained, 24 lost; exact McNemar p = 1.2e-07" in said.text  # 2 / 2^24
    assert "From the vote of its own jury to the file, by label: from 100.0% to 0.0%" in said.text


def test_a_mix_that_leaves_the_classifier_half_of_the_say_is_caught(made, data, tmp_path):
    # the classifier is sure wherever it is pushed, the juror less so: half of the say is the classifier's
    found = evaluated(made(tmp_path / "half.onnx", "mixed", 0.5), data)
    assert verdict(found).title == "Below its own robust classifier alone, by label"
    lines = {one.line.partition(":")[0]: one.holds for one in found.must_hold}
    assert lines["label right"] is False
    assert lines["clean accuracy"] is not True


def test_the_vote_of_the_jury_is_no_worse_than_its_one_juror_and_said_to_be_no_better(made, data, tmp_path):
    found = evaluated(made(tmp_path / "keeps.onnx", "robust", 1.0), data)
    assert found.worst_case.label_accuracy == found.row(PRUNED).worst_case.label_accuracy == 1.0
    said = verdict(found)
    assert said.level == "not-above"
    assert said.title == "Not above its own robust classifier alone, by label"
    assert "No gain was found" in said.text
