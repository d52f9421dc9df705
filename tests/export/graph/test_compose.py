from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_defend.sequential import SequentialOutcome, SequentialTest, member_scores, run_sequential_test
from s2ap_defend.stages import cut_stage, stage_sizes
from s2ap_defend.types import Verdicts
from s2ap_export.graph.builder import GraphBuilder
from s2ap_export.graph.compose import compose
from s2ap_export.tracing.trace import trace_classifier, trace_purifier
from s2ap_train.purifier import Purification, UNet, hadamard_bank

SHAPE = (1, 4, 4)
CLASSES = 5
TESTED = ("label", "adversarial", "label_change_rate", "log_likelihood_ratio", "members_used", "votes", "abstained")


def passing_purifier() -> ModelProto:
    """A purifier that changes nothing: the tests here are about what follows it."""
    build = GraphBuilder("purifier")
    low, high = build.constant(np.float32(0)), build.constant(np.float32(1))
    axes = build.constant(np.array([1, 2, 3], dtype=np.int64))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *SHAPE])
    purified = build.op("Clip", "image", low, high)
    error = build.op("ReduceSum", purified, axes, keepdims=0)
    outputs = [
        (purified, helper.make_tensor_value_info("purified", TensorProto.FLOAT, ["batch", *SHAPE])),
        (error, helper.make_tensor_value_info("reconstruction_error", TensorProto.FLOAT, ["batch"])),
    ]
    return build.model([image], outputs)


def network(seed: int) -> nn.Module:
    """Coarse weights on coarse images, so that equal scores and tied classes occur."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES, bias=False))
    net[1].weight.data = torch.randint(-1, 2, (CLASSES, 16), generator=generator) / 2  # type: ignore[union-attr]
    return net


def images(count: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).integers(0, 3, (count, *SHAPE)) / 2).astype(np.float32)


def session(model: ModelProto, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def verdicts(model: ModelProto, x: np.ndarray, threads: int = 1) -> Verdicts:
    return Verdicts(*session(model, threads).run(list(Verdicts.FIELDS), {"image": x}))


def random_test(members: int, bins: int, waves: tuple[int, ...], seed: int = 0, **changes: object) -> SequentialTest:
    random = np.random.default_rng(seed)
    lower, upper = -random.uniform(0.5, 2.5, members), random.uniform(0.5, 2.5, members)
    lower[random.random(members) < 0.3] = -np.inf
    upper[random.random(members) < 0.3] = np.inf
    tables: dict[str, object] = {
        "evidence": "surprise",
        "edges": np.sort(random.uniform(0.2, 5, (members, bins - 1)), axis=1).astype(np.float32),
        "increments": random.normal(0, 0.7, (members, bins)),
        "lower": lower,
        "upper": upper,
        "final_threshold": 0.0,
        "vote_members": members // 2,
        "base_vote_weights": np.array([0.7]),
        "waves": waves,
    }
    return SequentialTest(**(tables | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def stages() -> tuple[ModelProto, ModelProto, list[ModelProto]]:
    members = [trace_classifier(network(seed), SHAPE, f"trained_{seed}") for seed in range(1, 10)]
    return passing_purifier(), trace_classifier(network(0), SHAPE, "classifier"), members


def reference(model: ModelProto, test: SequentialTest, x: np.ndarray) -> SequentialOutcome:
    """The numpy loop on the answers of the stages, cut out of the file and run alone."""
    (purified, _) = session(cut_stage(model, "purifier")).run(None, {"image": x})
    (answer,) = session(cut_stage(model, "classifier")).run(None, {"image": purified})
    cut = [cut_stage(model, f"member_{i:03d}") for i in range(test.members)]
    answers = np.stack([session(member).run(None, {"image": purified})[0] for member in cut])
    return run_sequential_test(test, answers, answer.argmax(axis=1))


CASES = {
    "two bins": {"bins": 2, "waves": (4, 4, 1)},
    "six bins": {"bins": 6, "waves": (4, 4, 1)},
    "margins": {"bins": 6, "waves": (4, 4, 1), "evidence": "margin"},
    "waves of one": {"bins": 3, "waves": (1,) * 9},
    "one wave": {"bins": 3, "waves": (9,)},
    "uneven waves": {"bins": 3, "waves": (2, 5, 1, 1)},
    "votes after every decision": {"bins": 3, "waves": (2, 3, 4), "vote_members": 9},
    "votes end inside a wave": {"bins": 3, "waves": (2, 3, 4), "vote_members": 6, "upper": np.full(9, 0.4)},
    "no votes": {"bins": 3, "waves": (2, 3, 4), "vote_members": 0},
    "vetoed base": {"bins": 3, "waves": (3, 3, 3), "base_vote_weights": np.zeros(1), "vote_members": 9},
    "veto by evidence": {
        "bins": 3,
        "waves": (3, 3, 3),
        "base_vote_weights": np.array([1.0, 1 / 3, 0.0]),
        "base_vote_edges": np.array([0.7, 1.4]),
        "vote_members": 9,
    },
    "full votes": {"bins": 3, "waves": (2, 3, 4), "vote_members": 9, "curtail": False},
    "rejected": {"bins": 3, "waves": (2, 3, 4), "vote_members": 9, "correct": False},
    "undecided abstain": {
        "bins": 3,
        "waves": (2, 3, 4),
        "final_threshold": np.inf,
        "undecided_abstains": True,
    },
    "never decided, clean": {
        "bins": 3,
        "waves": (3, 3, 3),
        "lower": np.full(9, -np.inf),
        "upper": np.full(9, np.inf),
        "final_threshold": np.inf,
    },
    "never decided, adversarial": {
        "bins": 3,
        "waves": (3, 3, 3),
        "lower": np.full(9, -np.inf),
        "upper": np.full(9, np.inf),
        "final_threshold": -np.inf,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_the_graph_equals_the_sequential_loop_to_the_last_bit(
    stages: tuple[ModelProto, ModelProto, list[ModelProto]], name: str
) -> None:
    x = images(64)
    for seed in range(3):
        test = random_test(9, seed=seed, **CASES[name])  # type: ignore[arg-type]
        model = compose(*stages, test)
        found, expected = verdicts(model, x), reference(model, test, x)
        for field in TESTED:
            np.testing.assert_array_equal(getattr(found, field), getattr(expected, field), err_msg=f"{field}, {seed}")
            assert getattr(found, field).dtype == getattr(expected, field).dtype


def test_a_score_on_an_edge_and_a_ratio_on_a_boundary_fall_as_in_the_loop(
    stages: tuple[ModelProto, ModelProto, list[ModelProto]],
) -> None:
    x = images(64)
    test = random_test(9, 3, (3, 3, 3))
    model = compose(*stages, test)
    answers = [session(member).run(None, {"image": x})[0] for member in stages[2]]
    base = session(stages[1]).run(None, {"image": x})[0].argmax(axis=1)
    scores = member_scores("surprise", np.stack(answers), base)
    exact = replace(
        test,
        edges=np.sort(scores[:, :2], axis=1),  # of the first two images
        increments=np.tile([-0.5, 0.25, 0.5], (9, 1)),
        lower=np.full(9, -1.0),
        upper=np.full(9, 1.0),
    )
    model = compose(*stages, exact)
    found, expected = verdicts(model, x), reference(model, exact, x)
    assert (np.abs(found.log_likelihood_ratio) == 1.0).any()
    for field in TESTED:
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field), err_msg=field)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_verdict_is_the_same_in_every_batch_and_place(
    stages: tuple[ModelProto, ModelProto, list[ModelProto]], threads: int
) -> None:
    x = images(64)
    runner = session(compose(*stages, random_test(9, 4, (2, 3, 4))), threads)

    def run(batch: np.ndarray) -> Verdicts:
        return Verdicts(*runner.run(list(Verdicts.FIELDS), {"image": batch}))

    together = run(x)
    assert len(set(together.members_used.tolist())) > 3  # rows do leave at different places
    order = np.random.default_rng(1).permutation(64)
    for other, rows in [
        (Verdicts.concatenate([run(x[i : i + 1]) for i in range(64)]), np.arange(64)),
        (Verdicts.concatenate([run(x[i : i + 7]) for i in range(0, 64, 7)]), np.arange(64)),
        (run(x[order]), order),
    ]:
        for field in Verdicts.FIELDS:
            np.testing.assert_array_equal(getattr(other, field), getattr(together, field)[rows], err_msg=field)


def failing_member(stage: ModelProto) -> ModelProto:
    """A member that stops the run with an error when it is given an image whose first pixel is 1."""
    model = ModelProto()
    model.CopyFrom(stage)
    scope = model.graph.name
    model.graph.node[-1].output[0] = f"{scope}/answer"
    build = GraphBuilder(f"{scope}/guard")
    start, end, axes, column = (build.constant(np.array(v)) for v in ([0, 0, 0], [1, 1, 1], [1, 2, 3], [-1, 1]))
    first = build.op("Reshape", build.op("Slice", "image", start, end, axes), column)
    index = build.op("Cast", first, to=TensorProto.INT64)  # 1 at a pixel of 1, else 0
    added = build.op("Gather", build.constant(np.zeros(1, dtype=np.float32)), index)  # the table has one entry
    model.graph.initializer.extend(build.initializers.values())
    model.graph.node.extend(build.nodes)
    model.graph.node.append(
        helper.make_node("Add", [f"{scope}/answer", added], ["log_probabilities"], name=f"{scope}/sum")
    )
    return model


def test_members_after_the_decision_do_not_run(stages: tuple[ModelProto, ModelProto, list[ModelProto]]) -> None:
    purifier, classifier, members = stages
    never, always = np.full(4, np.inf), np.array([np.inf, -5.0, np.inf, np.inf])
    undecided = random_test(4, 2, (2, 2), lower=-never, upper=never, vote_members=2)
    decided = replace(undecided, upper=always)  # every image is flagged by the second member, whatever it says
    chosen = [*members[:2], failing_member(members[2]), members[3]]
    x = images(16)
    x[:, 0, 0, 0] = 0.5
    poisoned = x.copy()
    poisoned[3, 0, 0, 0] = 1.0
    with_answers = verdicts(compose(purifier, classifier, chosen, undecided), x)
    assert (with_answers.members_used == 4).all()
    with pytest.raises(Exception, match="out of data bounds"):
        verdicts(compose(purifier, classifier, chosen, undecided), poisoned)
    assert (verdicts(compose(purifier, classifier, chosen, decided), poisoned).members_used == 2).all()


def test_the_composed_file_keeps_the_contract(stages: tuple[ModelProto, ModelProto, list[ModelProto]]) -> None:
    test = random_test(9, 4, (2, 3, 4))
    model = compose(*stages, test)
    onnx.checker.check_model(model, full_check=True)
    assert [output.name for output in model.graph.output] == list(Verdicts.FIELDS)
    assert [value.name for value in model.graph.input] == ["image"]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert not model.functions
    assert sorted(stage_sizes(model)) == ["classifier", *(f"member_{i:03d}" for i in range(9)), "purifier", "test"]
    tables = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name.startswith("test/")}
    for name in ("edges", "increments", "lower", "upper", "base_vote_weights"):
        np.testing.assert_array_equal(tables[f"test/{name}"], getattr(test, name))
    branches = [node for node in model.graph.node if node.op_type == "If"]
    assert [node.name for node in branches] == ["test/wave_001/if", "test/wave_002/if"]


def test_a_member_cut_out_answers_as_the_stage_that_was_put_in(
    stages: tuple[ModelProto, ModelProto, list[ModelProto]],
) -> None:
    model = compose(*stages, random_test(9, 2, (2, 3, 4)))
    x = images(7)
    for i, stage in enumerate(stages[2]):
        cut = cut_stage(model, f"member_{i:03d}")
        np.testing.assert_array_equal(
            session(cut).run(None, {"image": x})[0], session(stage).run(None, {"image": x})[0]
        )


def test_a_file_taken_apart_is_composed_again_under_another_test(
    stages: tuple[ModelProto, ModelProto, list[ModelProto]],
) -> None:
    before, after = random_test(9, 2, (2, 3, 4)), random_test(9, 4, (5, 4), seed=3, correct=False)
    model = compose(*stages, before)
    members = [cut_stage(model, f"member_{i:03d}") for i in range(9)]
    again = compose(cut_stage(model, "purifier"), cut_stage(model, "classifier"), members, after)
    assert again.SerializeToString(deterministic=True) == compose(*stages, after).SerializeToString(deterministic=True)


def test_base_label_and_probabilities_are_the_classifiers_on_the_purified_image() -> None:
    config = Purification(steps=1, bank_size=2, mode="j_free")
    purifier = trace_purifier(UNet(1, 8, (1,), seed=1), hadamard_bank(2, SHAPE, 0), config, SHAPE)
    classifier = trace_classifier(network(0), SHAPE, "classifier")
    member = trace_classifier(network(1), SHAPE, "member_000")
    found = verdicts(compose(purifier, classifier, [member], random_test(1, 2, (1,))), images(9))
    (purified, error) = session(purifier).run(None, {"image": images(9)})
    (answer,) = session(classifier).run(None, {"image": purified})
    np.testing.assert_array_equal(found.purified, purified)
    np.testing.assert_array_equal(found.reconstruction_error, error)
    np.testing.assert_array_equal(found.base_label, answer.argmax(axis=1))
    np.testing.assert_allclose(found.probabilities, np.exp(answer), rtol=1e-6)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-5)


def test_stages_that_do_not_fit_are_refused(stages: tuple[ModelProto, ModelProto, list[ModelProto]]) -> None:
    purifier, classifier, members = stages
    with pytest.raises(RecipeError, match="tables for 2 members, found 3"):
        compose(purifier, classifier, members[:3], random_test(2, 2, (2,)))
    other = trace_classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), SHAPE, "other")
    with pytest.raises(RecipeError, match=r"member_001 reads images \(1, 4, 4\) and answers \(3,\)"):
        compose(purifier, classifier, [members[0], other], random_test(2, 2, (2,)))
