"""The stages that TensorRT is given: straight, with constant weights, and with the answers of the file's own."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from s2ap_defend import EngineError, ModelFileError
from s2ap_defend.executors.groups import Group
from s2ap_defend.executors.stages import stage_graphs
from s2ap_defend.executors.tensorrt import BUCKETS, engine_folder, made_folders, provider_options, stage_options
from s2ap_defend.manifest import METADATA_KEY
from s2ap_defend.model_file import ModelFile, all_graphs, open_model_file, weights_sha256, write_model_file
from s2ap_defend.stages import CLASSIFIER, PURIFIER, cut_stage
from s2ap_defend.tensorrt.plan import PlannedEngine, plan_engines
from s2ap_defend.two_four import is_two_four
from s2ap_defend.verification.lint import lint_stage
from s2ap_defend.verification.verify import file_stages


def answers(model: bytes, images: np.ndarray) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    runner = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in runner.get_outputs()]
    return dict(zip(names, runner.run(names, {"image": images}), strict=True))


def test_every_stage_has_an_engine_for_every_size_of_batch(file: ModelFile, planned: tuple[PlannedEngine, ...]) -> None:
    scopes = list(file_stages(file))
    assert [(one.scope, one.low, one.high) for one in planned] == [(s, *sizes) for s in scopes for sizes in BUCKETS]
    assert {one.shape for one in planned} == {file.manifest.input.shape}
    assert len({one.file for one in planned}) == len(planned)
    lows, highs = zip(*BUCKETS, strict=True)
    assert lows == (1, *(high + 1 for high in highs[:-1])), "no batch is left out"


def test_stages_for_tensorrt_have_one_input_pass_the_lint_and_answer_as_the_files_own(
    file: ModelFile, planned: tuple[PlannedEngine, ...]
) -> None:
    images = np.random.default_rng(0).random((3, *file.manifest.input.shape), dtype=np.float32)
    for one in planned:
        stage = ModelProto.FromString(one.model)
        assert [value.name for value in stage.graph.input] == ["image"]
        assert stage.graph.input[0].type.tensor_type.shape.dim[0].dim_param, "the batch is dynamic"
        assert lint_stage(stage) == []
        own = answers(cut_stage(file.proto, one.scope).SerializeToString(), images)
        found = answers(one.model, images)
        assert ("probabilities" in found) == one.scope.startswith(CLASSIFIER)
        for name, values in own.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5)


def asks(scope: str) -> Group:
    return Group(0, "raw", False, (scope,))


def test_the_staged_executor_asks_the_same_graphs_by_the_names_of_their_scopes(file: ModelFile) -> None:
    images = np.random.default_rng(0).random((3, *file.manifest.input.shape), dtype=np.float32)
    graphs = dict(stage_graphs(file.proto, [asks(CLASSIFIER), asks(PURIFIER)], rows_at_once=256, constant=True))
    for scope, graph in graphs.items():
        assert graph.rows_at_once == 256
        found = answers(graph.model, images)
        assert set(found) == set(graph.outputs)
        for name, values in answers(cut_stage(file.proto, scope).SerializeToString(), images).items():
            np.testing.assert_allclose(found[f"{scope}/{name}"], values, rtol=1e-5, atol=1e-5)


def test_a_stage_that_tensorrt_does_not_take_is_refused_with_its_node(file: ModelFile, tmp_path: Path) -> None:
    proto = ModelProto()
    proto.CopyFrom(file.proto)
    node = next(node for node in proto.graph.node if node.name.startswith("classifier/") and node.op_type == "Relu")
    node.op_type = "Det"
    write_model_file(file.proto, file.manifest, tmp_path / "m.onnx")
    broken = ModelFile(tmp_path / "m.onnx", file.manifest, proto, file.size_bytes, ())
    with pytest.raises(ModelFileError, match=r"m\.onnx is not for TensorRT: stage classifier: classifier/.*no Det"):
        plan_engines(broken)


def test_options_name_the_sizes_of_batches_and_the_folder_of_the_engines(tmp_path: Path) -> None:
    said = provider_options(tmp_path, "member_000", (3, 32, 32), sparse=True)
    assert said["trt_profile_min_shapes"] == "image:1x3x32x32,image:2x3x32x32,image:17x3x32x32"
    assert said["trt_profile_max_shapes"] == "image:1x3x32x32,image:16x3x32x32,image:256x3x32x32"
    assert said["trt_engine_cache_path"].startswith(str(tmp_path))
    assert said["trt_engine_cache_prefix"] == "member_000"
    assert said["trt_sparsity_enable"] == "True"
    assert engine_folder(tmp_path / "m.onnx") == tmp_path / "m.onnx.tensorrt"


def convolutions(*weights: np.ndarray, quantised: bool = False) -> ModelProto:
    nodes: list[NodeProto] = []
    tensors: list[TensorProto] = []
    for i, weight in enumerate(weights):
        name = f"w{i}"
        if quantised:
            tensors += [numpy_helper.from_array(weight.astype(np.int8), name)]
            tensors += [numpy_helper.from_array(np.ones(len(weight), dtype=np.float32), f"s{i}")]
            nodes.append(helper.make_node("DequantizeLinear", [name, f"s{i}"], [f"d{i}"], axis=0))
            name = f"d{i}"
        else:
            tensors.append(numpy_helper.from_array(weight.astype(np.float32), name))
        nodes.append(helper.make_node("Conv", [f"x{i}" if i else "image", name], [f"x{i + 1}"]))
    shape = ["batch", weights[0].shape[1], 4, 4]
    value = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "stage", [value], [helper.make_empty_tensor_value_info("x1")], tensors)
    return helper.make_model(graph)


def test_folders_of_engines_are_there_and_gone_again_after_a_failure(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        with made_folders(folder):
            assert {path.name for path in folder.iterdir()} == {"onnxruntime", "timing"}
            raise EngineError("no driver")

    with pytest.raises(EngineError, match="no driver"):
        fails(tmp_path / "a" / "engines")
    assert list(tmp_path.iterdir()) == []
    with made_folders(tmp_path / "engines"):
        pass
    with pytest.raises(EngineError, match="no driver"):
        fails(tmp_path / "engines")
    assert (tmp_path / "engines" / "timing").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match="cannot be written"):
        fails(tmp_path / "file")


@pytest.mark.parametrize("quantised", [False, True])
def test_two_of_four_are_counted_along_the_inputs(quantised: bool, tmp_path: Path) -> None:
    sparse = np.zeros((8, 8, 3, 3))
    sparse[:, [0, 3, 5, 6]] = 2
    along_outputs = np.ascontiguousarray(sparse.swapaxes(0, 1))
    along_outputs[0, :, 0, 0] = 1  # three of four somewhere
    dense, first = np.ones((8, 8, 1, 1)), np.ones((8, 3, 3, 3))
    assert is_two_four(convolutions(sparse, quantised=quantised))
    assert is_two_four(convolutions(sparse, dense, quantised=quantised)), "the last layer may be dense"
    assert is_two_four(convolutions(first, sparse, sparse, dense, quantised=quantised))
    assert not is_two_four(convolutions(along_outputs, quantised=quantised))
    assert not is_two_four(convolutions(sparse, dense, dense, quantised=quantised))
    assert not is_two_four(convolutions(first, quantised=quantised))
    model = convolutions(sparse, quantised=quantised).SerializeToString()
    assert stage_options(tmp_path, "member_000", model)["trt_sparsity_enable"] == "True"


def test_a_stage_of_2_4_weights_is_marked_when_the_file_is_written_and_counted_when_it_is_opened(
    file: ModelFile, tmp_path: Path
) -> None:
    proto = ModelProto()
    proto.CopyFrom(file.proto)
    tensors = {tensor.name: tensor for graph in all_graphs(proto.graph) for tensor in graph.initializer}
    read = {node.input[1] for graph in all_graphs(proto.graph) for node in graph.node if node.op_type == "Conv"}
    for name in sorted(read & set(tensors)):
        weight = numpy_helper.to_array(tensors[name]).copy()
        if name.startswith("member_001/") and weight.ndim == 4:
            weight[:, ::4] = weight[:, 1::4] = 0
            tensors[name].CopyFrom(numpy_helper.from_array(weight, name))
    assert file.manifest.two_four == ()
    assert "two_four" not in file.manifest.to_json(), "left out, as in older files"
    for external in (False, True):
        write_model_file(proto, file.manifest, tmp_path / "m.onnx", external_data=external)
        marked = open_model_file(tmp_path / "m.onnx")
        assert marked.manifest.two_four == ("member_001",)
    assert {one.scope for one in plan_engines(marked) if one.sparse} == {"member_001"}
    dense = onnx.load(file.path)
    said = marked.manifest.model_copy(
        update={"weights_sha256": weights_sha256(file.proto), "graph_sha256": file.manifest.graph_sha256}
    )
    next(one for one in dense.metadata_props if one.key == METADATA_KEY).value = said.to_json()
    onnx.save_model(dense, tmp_path / "wrong.onnx")
    with pytest.raises(ModelFileError, match="the weights of member_001 are not 2:4, the manifest says so"):
        open_model_file(tmp_path / "wrong.onnx")
