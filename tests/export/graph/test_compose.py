from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, numpy_helper
from tests.runtime.sequential_cases import sequential_test
from torch import nn

from s2ap_defend.decision_record import Purify
from s2ap_defend.errors import RecipeError
from s2ap_defend.model_file import all_graphs
from s2ap_defend.sequential import SequentialTest, Signal, tables_in_graph
from s2ap_defend.stages import cut_stage, reads, stage_sizes
from s2ap_defend.types import Verdicts
from s2ap_export.graph.compose import compose
from s2ap_export.tracing.torch_exporter import WRITER
from s2ap_export.tracing.trace import trace_classifier, trace_purifier
from s2ap_train.purifier import Purification, UNet, hadamard_bank

SHAPE = (1, 4, 4)
CLASSES = 5
MEMBERS = [f"member_{i:03d}" for i in range(4)]
POLICIES: list[Purify] = ["always", "suspicious", "off"]
ANSWERS = ["robust", "mixed", "accurate"]


def network(seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES, bias=False))
    net[1].weight.data = torch.randint(-1, 2, (CLASSES, 16), generator=generator) / 2
    return net


@cache
def purifier(steps: int = 1) -> ModelProto:
    config = Purification(steps=steps, bank_size=2, mode="j_free")
    return trace_purifier(UNet(1, 8, (1,), seed=1), hadamard_bank(2, SHAPE, 0), config, SHAPE)


def images(count: int) -> np.ndarray:
    return (np.random.default_rng(0).integers(0, 3, (count, *SHAPE)) / 2).astype(np.float32)


def run(model: ModelProto, x: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    runner = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = runner.run([output.name for output in model.graph.output], {"image": x})
    return found


@pytest.fixture(scope="module")
def members() -> list[ModelProto]:
    return [trace_classifier(network(seed), SHAPE, f"trained_{seed}") for seed in range(1, 5)]


@pytest.fixture(scope="module")
def classifier() -> ModelProto:
    return trace_classifier(network(0), SHAPE, "classifier")


def decision(**changes: object) -> SequentialTest:
    return sequential_test(4, **({"waves": (2, 1, 1), "lower": np.array([-1.0, -2, -2, -2])} | changes))


def defended(classifier: ModelProto, members: list[ModelProto], test: SequentialTest, purify: Purify) -> ModelProto:
    stage = purifier(0 if purify == "off" else 1)
    return compose(stage, classifier, members, test, sees=["raw", "raw", "purified", "raw"], purify=purify)


@pytest.mark.parametrize("purify", POLICIES)
@pytest.mark.parametrize("answer", ANSWERS)
def test_pixels_that_are_none_flag_their_image_and_change_nothing_for_its_neighbours(
    classifier: ModelProto, members: list[ModelProto], answer: str, purify: Purify
) -> None:
    model = defended(classifier, members, decision(answer=answer), purify)
    x = images(8)
    bad = {1: np.nan, 3: np.inf, 4: -np.inf, 6: 1e30, 7: -5.0}
    for row, pixel in bad.items():
        x[row, 0, 1, 2] = pixel
    found = Verdicts(*run(model, x))
    assert found.adversarial[list(bad)].all()
    assert found.abstained.tolist() == [False, True, False, True, True, False, False, False]
    for name in Verdicts.FIELDS:
        assert np.isfinite(getattr(found, name)).all(), name
    good = [row for row in range(8) if row not in bad]
    alone = Verdicts(*run(model, x[good]))
    for name in Verdicts.FIELDS:
        np.testing.assert_array_equal(getattr(found, name)[good], getattr(alone, name), err_msg=name)


@pytest.mark.parametrize("purify", POLICIES)
def test_a_bad_image_abstains_where_flagged_ones_are_rejected(
    classifier: ModelProto, members: list[ModelProto], purify: Purify
) -> None:
    x = images(3)
    x[1, 0, 0, 0] = 1.5
    found = Verdicts(*run(defended(classifier, members, decision(correction="reject"), purify), x))
    assert found.adversarial[1]
    assert found.abstained[1]


@pytest.mark.parametrize("purify", POLICIES)
@pytest.mark.parametrize("answer", ANSWERS)
def test_the_composed_file_keeps_the_contract(
    classifier: ModelProto, members: list[ModelProto], answer: str, purify: Purify
) -> None:
    test = decision(answer=answer, signals=(Signal("jury margin", np.zeros(1, np.float32), np.array([-0.5, 0.5])),))
    model = defended(classifier, members, test, purify)
    onnx.checker.check_model(model, full_check=True)
    assert [output.name for output in model.graph.output] == list(Verdicts.FIELDS)
    assert [value.name for value in model.graph.input] == ["image"]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert sorted(stage_sizes(model)) == ["classifier", *MEMBERS, "purifier", "test"]
    for graph in all_graphs(model.graph):
        read = {name for node in graph.node for name in reads(node)}
        assert {tensor.name for tensor in graph.initializer} <= read | {
            f"test/{name}" for name in tables_in_graph(test)
        }
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, table in tables_in_graph(test).items():
        np.testing.assert_array_equal(found[f"test/{name}"], table)


@pytest.mark.parametrize("purify", POLICIES)
def test_a_file_taken_apart_is_composed_again_under_another_decision(
    classifier: ModelProto, members: list[ModelProto], purify: Purify
) -> None:
    model = defended(classifier, members, decision(), purify)
    x = images(7)
    cut = [cut_stage(model, name) for name in MEMBERS]
    for found, stage in zip(cut, members, strict=True):
        np.testing.assert_array_equal(run(found, x)[0], run(stage, x)[0])
    after = decision(answer="mixed", jury_share=0.5, correction="reject", waves=(4,))
    stages = cut_stage(model, "purifier"), cut_stage(model, "classifier"), cut
    again = compose(*stages, after, sees=["raw"] * 4, purify=purify)
    expected = compose(
        purifier(0 if purify == "off" else 1), classifier, members, after, sees=["raw"] * 4, purify=purify
    )
    for one, other in zip(run(again, x), run(expected, x), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def written_by_torch() -> tuple[ModelProto, ModelProto]:
    """Two stages that torch's exporter wrote."""
    padded = [nn.Sequential(nn.ZeroPad2d((0, 0, 0, 1)), nn.Flatten(), nn.Linear(20, CLASSES)) for _ in range(2)]
    first, last = (trace_classifier(one, SHAPE, "trained") for one in padded)
    return first, last


@pytest.mark.parametrize("purify", POLICIES)
def test_stages_that_torch_wrote_are_composed_and_cut_out_again_like_our_own(
    written_by_torch: tuple[ModelProto, ModelProto], members: list[ModelProto], purify: Purify
) -> None:
    first, last = written_by_torch
    assert first.producer_name == last.producer_name == WRITER
    model, x = defended(first, [*members[:3], last], decision(), purify), images(7)
    for name, stage in {"classifier": first, MEMBERS[0]: members[0], MEMBERS[3]: last}.items():
        np.testing.assert_array_equal(run(cut_stage(model, name), x)[0], run(stage, x)[0])
    assert np.isfinite(Verdicts(*run(model, x)).probabilities).all()


@pytest.mark.parametrize("purify", POLICIES)
def test_large_weights_of_later_members_lie_in_the_main_graph_and_change_no_bit(
    classifier: ModelProto, members: list[ModelProto], purify: Purify
) -> None:
    inside, x = defended(classifier, members, decision(), purify), images(9)
    stage, sees = purifier(0 if purify == "off" else 1), ["raw", "raw", "purified", "raw"]
    model = compose(stage, classifier, members, decision(), sees=sees, purify=purify, most_in_branches=0)
    names = {tensor.name.partition("/")[0] for tensor in model.graph.initializer}
    assert names >= {*MEMBERS}
    assert not {tensor.name.partition("/")[0] for tensor in inside.graph.initializer} & {*MEMBERS[2:]}
    for one, other in zip(run(model, x), run(inside, x), strict=True):
        np.testing.assert_array_equal(one, other)
    assert stage_sizes(model) == stage_sizes(inside)
    for name, member in zip(MEMBERS, members, strict=True):
        np.testing.assert_array_equal(run(cut_stage(model, name), x)[0], run(member, x)[0])


def test_base_label_and_probabilities_are_the_classifiers_on_the_purified_image(
    classifier: ModelProto, members: list[ModelProto]
) -> None:
    found = Verdicts(*run(defended(classifier, members, decision(), "always"), images(9)))
    purified, error = run(purifier(), images(9))
    (answer,) = run(classifier, purified)
    np.testing.assert_array_equal(found.purified, purified)
    np.testing.assert_array_equal(found.reconstruction_error, error)
    np.testing.assert_array_equal(found.base_label, answer.argmax(axis=1))
    np.testing.assert_allclose(found.probabilities, np.exp(answer), rtol=1e-6)


def test_stages_that_do_not_fit_are_refused(classifier: ModelProto, members: list[ModelProto]) -> None:
    stage, test = purifier(), decision()
    with pytest.raises(RecipeError, match="tables for 4 members, found 3"):
        compose(stage, classifier, members[:3], test, sees=["raw"] * 3, purify="always")
    with pytest.raises(RecipeError, match="sees says what 3 members see"):
        compose(stage, classifier, members, test, sees=["raw"] * 3, purify="always")
    with pytest.raises(RecipeError, match="purify is 'off', but the purifier has"):
        compose(stage, classifier, members, test, sees=["raw"] * 4, purify="off")
    with pytest.raises(RecipeError, match="let it see 'raw'"):
        compose(stage, classifier, members, test, sees=["purified"] * 4, purify="suspicious")
    signal = Signal("reconstruction error", np.zeros(1, np.float32), np.array([-0.5, 0.5]))
    with pytest.raises(RecipeError, match="the signal 'reconstruction error'"):
        compose(stage, classifier, members, replace(test, signals=(signal,)), sees=["raw"] * 4, purify="suspicious")
    other = trace_classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), SHAPE, "other")
    with pytest.raises(RecipeError, match=r"member_003 reads images \(1, 4, 4\) and answers \(3,\)"):
        compose(stage, classifier, [*members[:3], other], test, sees=["raw"] * 4, purify="always")
