"""Weights without their zeros: the same graph for us, the same bits in plain ONNX Runtime, refused where changed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import GraphProto, TensorProto, helper, numpy_helper

from s2ap_defend import ModelFileError, half_weights, sparse_weights
from s2ap_defend.commands.main import run
from s2ap_defend.model_file import all_graphs, all_tensors, open_model_file, write_model_file
from s2ap_defend.precision_record import PrecisionRecord
from s2ap_defend.sparse_weights import compress, expand

NAME, PLACES = "w", 4096


def graph_of(weight: np.ndarray) -> GraphProto:
    """A graph that gives its one weight."""
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    node = helper.make_node("Identity", [NAME], ["said"], name="said")
    output = helper.make_tensor_value_info("said", kind, weight.shape)
    return helper.make_graph([node], "g", [], [output], [numpy_helper.from_array(weight, NAME)])


def at(places: list[int], dtype: type = np.float32) -> np.ndarray:
    """A weight that is zero elsewhere."""
    weight = np.zeros(PLACES, dtype)
    weight[places] = 1 + np.arange(len(places)) % 100
    return weight


CASES = {
    "random": np.where(np.random.default_rng(0).random(PLACES) < 0.1, 1.5, 0).astype(np.float32),
    "in four dimensions": at([5, 700, 1500]).reshape(8, 8, 8, 8),
    "all zero": at([]),
    "ends": at([0, PLACES - 1]),
    "gaps of a byte and one more": at([255, 510, 766, 767, 1277, 1788]),
    "first behind a byte": at([256, 300]),
    "minus zero and what is no number": np.array([-0.0, np.nan, -np.inf, *[0] * PLACES], np.float32),
    "float16": at([3, 1000, 4000], np.float16),
    "int8": at([0, 1, 255, 4000], np.int8),
}


@pytest.mark.parametrize("weight", CASES.values(), ids=list(CASES))
def test_weights_come_back_to_the_last_bit_here_and_in_onnxruntime(weight: np.ndarray) -> None:
    graph, expected = graph_of(weight), graph_of(weight)
    assert compress([graph]) == 1
    assert graph.ByteSize() < expected.ByteSize() / 2
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    (said,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {})
    assert (said.dtype, said.shape, said.tobytes()) == (weight.dtype, weight.shape, weight.tobytes())
    assert expand([graph], most_bytes=weight.nbytes) == 1
    assert graph == expected


@pytest.mark.parametrize("weight", [at(list(range(0, PLACES, 2))), np.zeros(200, np.float32), np.zeros(PLACES)])
def test_what_would_not_be_halved_is_small_or_of_another_type_stays_as_it_is(weight: np.ndarray) -> None:
    graph = graph_of(weight)
    assert compress([graph]) == 0
    assert graph == graph_of(weight)


def test_a_graph_whose_names_could_be_taken_for_parts_stays_as_it_is() -> None:
    graph = graph_of(CASES["random"])
    graph.initializer.add(name="other:gaps", data_type=TensorProto.FLOAT)
    assert compress([graph]) == 0


def part(graph: GraphProto, name: str) -> TensorProto:
    return next(tensor for tensor in graph.initializer if tensor.name == f"{NAME}:{name}")


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[GraphProto], None]:
    """A graph with one part of its weight changed."""

    def apply(graph: GraphProto) -> None:
        tensor = part(graph, name)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(numpy_helper.to_array(tensor).copy())), tensor.name))

    return apply


FORGED: dict[str, tuple[Callable[[GraphProto], None], str]] = {
    "a place twice": (changed("gaps", lambda gaps: np.where(gaps == 5, 0, gaps).astype(np.uint8)), "repeat one"),
    "places behind the end": (changed("gaps", lambda gaps: np.full_like(gaps, 255)), "leave its 4096 places"),
    "fewer values": (changed("values", lambda values: values[1:]), "other types or shapes"),
    "other gaps": (changed("gaps", lambda gaps: gaps.astype(np.int32)), "other types or shapes"),
    "another axis": (changed("axis", lambda axis: axis + 1), "other types or shapes"),
    "another shape": (changed("shape", lambda shape: shape + 1), "would have the shape [4097]"),
    "no weights": (changed("size", lambda size: size * 0), "would have the shape"),
    "more than fits": (changed("size", lambda size: size * 2**40), "bytes of at most"),
    "a part less": (lambda graph: graph.initializer.remove(part(graph, "values")), "without values"),
    "another node": (lambda graph: setattr(graph.node[3], "op_type", "ScatterND"), "not those of the file format"),
    "nodes elsewhere": (lambda graph: graph.node.insert(0, graph.node[-1]), "not those of the file format"),
}


@pytest.mark.parametrize(("forge", "said"), FORGED.values(), ids=list(FORGED))
def test_what_is_not_of_the_format_is_refused(forge: Callable[[GraphProto], None], said: str) -> None:
    graph = graph_of(at([*range(0, 4000, 200), *range(5, 4000, 205)]))
    compress([graph])
    forge(graph)
    with pytest.raises(ValueError, match=said.replace("[", r"\[").replace("]", r"\]")):
        expand([graph], most_bytes=1 << 20)


def outputs(path: Path, images: np.ndarray, level: onnxruntime.GraphOptimizationLevel) -> list[bytes]:
    """What plain ONNX Runtime answers."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.log_severity_level, options.intra_op_num_threads = level, 3, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [one.tobytes() for one in session.run(None, {"image": images})]


def test_a_sparse_file_is_the_dense_one_for_us_and_for_plain_onnxruntime(
    sparse_model_path: Path, tmp_path: Path, random_images: np.ndarray
) -> None:
    sparse, dense_path = open_model_file(sparse_model_path), tmp_path / "dense.onnx"
    write_model_file(sparse.proto, sparse.manifest.model_copy(update={"sparse_weights": None}), dense_path)
    dense = open_model_file(dense_path)
    assert dense.manifest.sparse_weights is None
    assert sparse.size_bytes < dense.size_bytes
    assert sparse.outline.graph == dense.outline.graph
    hashes = ("weights_sha256", "graph_sha256")
    assert [getattr(sparse.manifest, one) for one in hashes] == [getattr(dense.manifest, one) for one in hashes]
    stored = onnx.load(sparse_model_path)
    inside = [len([t for t in g.initializer if t.name.endswith(":gaps")]) for g in all_graphs(stored.graph)]
    assert sum(inside) == sparse.manifest.sparse_weights
    assert len([count for count in inside if count]) > 1, "weights in branches too"
    for level in ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL"):
        asked = getattr(onnxruntime.GraphOptimizationLevel, level)
        assert outputs(sparse_model_path, random_images[:4], asked) == outputs(dense_path, random_images[:4], asked)


def test_a_sparse_file_that_is_written_again_is_the_same_and_in_external_data_it_is_dense(
    sparse_model_path: Path, tmp_path: Path
) -> None:
    file = open_model_file(sparse_model_path)
    write_model_file(file.proto, file.manifest, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == sparse_model_path.read_bytes()
    write_model_file(file.proto, file.manifest, tmp_path / "apart.onnx", external_data=True)
    apart = open_model_file(tmp_path / "apart.onnx")
    assert apart.manifest.sparse_weights is None
    assert apart.manifest.weights_sha256 == file.manifest.weights_sha256


def test_sparse_weights_are_shortened_to_halves_too_in_branches_as_in_the_main_graph(
    sparse_model_path: Path, tmp_path: Path, random_images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_weights, "_WORTH_BYTES", 0)  # the networks are tiny
    monkeypatch.setattr(half_weights, "_LEAST", 20)
    file = open_model_file(sparse_model_path)
    for tensor in all_tensors(file.proto.graph):
        if tensor.name.startswith(("classifier", "member")) and tensor.data_type == TensorProto.FLOAT:
            rounded = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    members = tuple(one.model_copy(update={"precision": "float16_weights"}) for one in file.manifest.members)
    said = PrecisionRecord(classifier="float16_weights", comparison=None)
    halved = file.manifest.model_copy(update={"members": members, "precision": said})
    paths = {name: tmp_path / f"{name}.onnx" for name in ("both", "dense")}
    write_model_file(file.proto, halved, paths["both"])
    write_model_file(file.proto, file.manifest.model_copy(update={"sparse_weights": None}), paths["dense"])
    both, dense = map(open_model_file, paths.values())
    assert both.outline.graph == dense.outline.graph
    stored = [
        {one.name.rpartition(":")[2] for one in g.initializer} for g in all_graphs(onnx.load(paths["both"]).graph)
    ]
    assert [{"gaps", "half"} <= kinds for kinds in stored].count(True) > 1
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert outputs(paths["both"], random_images[:4], level) == outputs(paths["dense"], random_images[:4], level)


def test_a_sparse_file_is_verified_and_inspected(sparse_model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(sparse_model_path)]) == 0
    assert run(["inspect", str(sparse_model_path)]) == 0
    count = open_model_file(sparse_model_path).manifest.sparse_weights
    assert f"sparse  {count} tensors are stored without their zeros" in capsys.readouterr().out


def test_a_sparse_file_that_was_changed_is_one_clear_error(sparse_model_path: Path, tmp_path: Path) -> None:
    proto = onnx.load(sparse_model_path)
    gaps = next(t for t in proto.graph.initializer if t.name.endswith(":gaps"))
    gaps.raw_data = bytes(255 for _ in gaps.raw_data)
    onnx.save(proto, tmp_path / "changed.onnx")
    with pytest.raises(ModelFileError, match=r"is damaged: the gaps of .* fetch or export it again"):
        open_model_file(tmp_path / "changed.onnx")
    values = onnx.load(sparse_model_path)
    first = next(t for t in values.graph.initializer if t.name.endswith(":values"))
    first.raw_data = bytes(4) + first.raw_data[4:]
    onnx.save(values, tmp_path / "changed.onnx")
    with pytest.raises(ModelFileError, match="was changed after it was written: its weights"):
        open_model_file(tmp_path / "changed.onnx")
    apart = onnx.load(sparse_model_path)
    onnx.save_model(apart, tmp_path / "apart.onnx", save_as_external_data=True, location="apart.data")
    with pytest.raises(ModelFileError, match="has sparse weights and external data"):
        open_model_file(tmp_path / "apart.onnx")
    said = onnx.load(sparse_model_path)
    entry = said.metadata_props[0]
    count = open_model_file(sparse_model_path).manifest.sparse_weights
    entry.value = entry.value.replace(f'"sparse_weights":{count}', f'"sparse_weights":{count + 1}')
    onnx.save(said, tmp_path / "changed.onnx")
    with pytest.raises(ModelFileError, match=f"holds {count} sparse tensors, its manifest says {count + 1}"):
        open_model_file(tmp_path / "changed.onnx")
