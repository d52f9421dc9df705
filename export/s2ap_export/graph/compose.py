"""Stages and the decision in one graph: the defended model.

Names that others rely on (docs/model-file.md):

    purifier/purified, purifier/reconstruction_error, classifier/log_probabilities, member_NNN/log_probabilities
        outputs of the stages. A stage is exactly the nodes named `scope/...`; it reads one value from outside.
    test/image, purifier/purified, test/wave_NNN/raw, test/wave_NNN/purified, test/suspicious/image
        what stages read: the sanitised image or the purified one, or the rows of them that are asked.
    classifier_again/...
        the classifier on images that are purified only where they are suspicious; a large one reads the classifier's
        weights, others have a copy.
    test/NAME
        initialisers of the main graph, the tables of `s2ap_defend.sequential.tables_in_graph`.

The first wave asks every image and lies in the main graph. Each later wave is the branch of an `If` that is taken when
an image still needs it, undecided or in a vote that is not settled: its images are gathered, its members run, what they
say is scattered back. The weights of a member lie in its wave's branch, where engines rearrange them as they do
elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

from s2ap_defend.decision_record import Purify, Sees
from s2ap_defend.errors import RecipeError
from s2ap_defend.sequential import SequentialTest
from s2ap_defend.stages import CLASSIFIER, PURIFIER, member_scope, wave_sizes
from s2ap_export.graph.answers import add_tables, wave_tables
from s2ap_export.graph.branches import Images, Open, conditional_wave, purify_suspicious
from s2ap_export.graph.builder import BATCH, IR_VERSION, OPSET, PRODUCER, GraphBuilder
from s2ap_export.graph.decision import decide
from s2ap_export.graph.jury import JuryLayout
from s2ap_export.graph.opening import judge, read_opening
from s2ap_export.graph.sanitise import sanitise
from s2ap_export.graph.scopes import MOST_IN_BRANCHES, embed, leave_out_unread, move, rename_scope
from s2ap_export.graph.waves import Wave, pack, waits

__all__ = ["MOST_IN_BRANCHES", "compose"]


def compose(
    purifier: ModelProto,
    classifier: ModelProto,
    members: Sequence[ModelProto],
    test: SequentialTest,
    *,
    sees: Sequence[Sees],
    purify: Purify,
    most_in_branches: int = MOST_IN_BRANCHES,
) -> ModelProto:
    """The defended model: input `image`, outputs as in `s2ap_defend.types.Verdicts`, no manifest yet.

    Args:
        purifier: Stage `image` -> `purified`, `reconstruction_error`.
        classifier: Stage `image` -> `log_probabilities`.
        members: Stages `image` -> `log_probabilities` in the order in which they are asked; their scopes become
            `member_000`, `member_001`, ...
        test: The tables of the decision and its waves. Where only suspicious images are purified, the opening is a wave
            of its own.
        sees: The image that each member sees.
        purify: Which images are purified; 'off' takes a purifier of 0 steps.
        most_in_branches: Bytes that members in branches may have together before their weights lie in the main graph.

    Raises:
        RecipeError: If the stages, what they see and when to purify do not fit together.
    """
    image_shape, classes = _check(purifier, classifier, members, test)
    _check_sees(purifier, test, sees, purify)
    layout = JuryLayout.of(test, classes)
    sizes = wave_sizes(test, purify)
    graph = GraphProto(name="defended")

    build = GraphBuilder("test")
    add_tables(build, test)
    tables = wave_tables(build, test, sizes)
    clean = sanitise(build)
    move(build, graph)
    images: Images = {"raw": clean.image, "purified": clean.image}
    if purify != "suspicious":
        embed(graph, rename_scope(purifier, PURIFIER), clean.image)
        images["purified"] = f"{PURIFIER}/purified"
    embed(graph, rename_scope(classifier, CLASSIFIER), images["purified"])
    said, error = f"{CLASSIFIER}/log_probabilities", f"{PURIFIER}/reconstruction_error"

    stages = [rename_scope(stage, member_scope(i)) for i, stage in enumerate(members)]
    waves = [Wave(test, layout, part, sum(sizes[:i]), sizes[i]) for i, part in enumerate(tables)]
    for stage, eye in zip(stages[: sizes[0]], sees, strict=False):
        embed(graph, stage, images[eye])
    behind = [*waves[1:], None]
    build = GraphBuilder("test/wave_000")
    spoken, own = read_opening(build, waves[0], clean.valid, said)
    state = judge(build, waves[0], spoken, said, own, error)
    if purify == "suspicious":
        packed = pack(build, state)
        move(build, graph)
        asked, opened = purify_suspicious(
            graph, waves[0], purifier, classifier, spoken, own, packed, state.verdict, image_shape, behind[0]
        )
        images["purified"], error, said, own = asked.image, asked.reconstruction_error, asked.classifier, asked.own
    else:
        opened = Open(pack(build, state), waits(build, behind[0], state.verdict) if behind[0] else "")
        move(build, graph)
    later = stages[sizes[0] :]
    if sum(stage.ByteSize() for stage in later) > most_in_branches:
        for stage in later:
            graph.initializer.extend(stage.graph.initializer)
            del stage.graph.initializer[:]
    for i, wave in enumerate(waves[1:], start=1):
        pairs = list(zip(stages[wave.members], sees[wave.members], strict=True))
        opened = conditional_wave(graph, wave, f"test/wave_{i:03d}", pairs, images, image_shape, opened, behind[i])

    build = GraphBuilder("test/decision")
    found = decide(build, test, layout, said, own, clean.finite, opened.state)
    found |= {"purified": images["purified"], "reconstruction_error": error}
    _declare(build, graph, found, image_shape, classes)
    leave_out_unread(graph)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name = PRODUCER
    onnx.checker.check_model(model, full_check=True)
    return model


def _declare(
    build: GraphBuilder, graph: GraphProto, found: Mapping[str, str], image_shape: tuple[int, ...], classes: int
) -> None:
    """Move the last nodes into the graph, and declare its input and outputs.

    A value of these nodes gets the name of its output; one that has a name of its own, or two outputs, is copied.
    """
    kinds: dict[str, tuple[int, list[int]]] = {
        "label": (TensorProto.INT64, []),
        "adversarial": (TensorProto.BOOL, []),
        "base_label": (TensorProto.INT64, []),
        "probabilities": (TensorProto.FLOAT, [classes]),
        "label_change_rate": (TensorProto.FLOAT, []),
        "log_likelihood_ratio": (TensorProto.DOUBLE, []),
        "members_used": (TensorProto.INT64, []),
        "votes": (TensorProto.DOUBLE, [classes]),
        "purified": (TensorProto.FLOAT, list(image_shape)),
        "reconstruction_error": (TensorProto.FLOAT, []),
        "abstained": (TensorProto.BOOL, []),
    }
    made = {value for node in build.nodes for value in node.output}
    renamed = {found[name]: name for name in kinds if found[name] in made}
    for node in build.nodes:
        node.input[:] = [renamed.get(value, value) for value in node.input]
        node.output[:] = [renamed.get(value, value) for value in node.output]
    move(build, graph)
    for name, (element, row) in kinds.items():
        value = renamed.get(found[name], found[name])
        if value != name:
            graph.node.append(helper.make_node("Identity", [value], [name], name=f"test/output/{name}"))
        graph.output.append(helper.make_tensor_value_info(name, element, [BATCH, *row]))
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, [BATCH, *image_shape]))


def _check(
    purifier: ModelProto, classifier: ModelProto, members: Sequence[ModelProto], test: SequentialTest
) -> tuple[tuple[int, ...], int]:
    """The image shape (C, H, W) and the number of classes that all stages share."""
    if len(members) != test.members:
        raise RecipeError(f"the test has tables for {test.members} members, found {len(members)} members")
    image_shape = _sizes(purifier.graph.input[0])
    classes = _sizes(classifier.graph.output[0])
    for name, stage in [("classifier", classifier), *((member_scope(i), stage) for i, stage in enumerate(members))]:
        reads, answers = _sizes(stage.graph.input[0]), _sizes(stage.graph.output[0])
        if reads != image_shape or answers != classes:
            raise RecipeError(
                f"{name} reads images {reads} and answers {answers}; the purifier gives {image_shape}, the classifier "
                f"answers {classes}; trace them for one data set"
            )
    return image_shape, classes[0]


def _check_sees(purifier: ModelProto, test: SequentialTest, sees: Sequence[Sees], purify: Purify) -> None:
    if len(sees) != test.members:
        raise RecipeError(f"sees says what {len(sees)} members see, the test has tables for {test.members}")
    convolutions = sum(node.op_type in {"Conv", "ConvTranspose"} for node in purifier.graph.node)
    if purify == "off" and convolutions:
        raise RecipeError(f"purify is 'off', but the purifier has {convolutions} convolutions; give one of 0 steps")
    if purify == "suspicious" and "purified" in sees[: test.opening]:
        raise RecipeError("purify 'suspicious' asks the opening before anything is purified; let it see 'raw'")
    if purify == "suspicious" and any(signal.name == "reconstruction error" for signal in test.signals):
        raise RecipeError("purify 'suspicious' leaves images without the signal 'reconstruction error'; drop it")


def _sizes(declared: ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in declared.type.tensor_type.shape.dim[1:])
