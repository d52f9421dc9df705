"""The repository that Triton reads: its configuration by Triton's own protobuf, and its files."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import onnxruntime
import pytest
import tritonclient
from google.protobuf import text_format

from s2ap_defend.commands.main import run
from s2ap_defend.model_file import open_model_file, write_model_file
from s2ap_defend.triton.repository import write_repository
from s2ap_defend.types import Verdicts

PUBLIC = ["label", "adversarial", "abstained"]


@pytest.fixture(scope="module")
def protobuf() -> ModuleType:
    """Triton's protobuf of configurations, from its client: the package around it wants grpc, the module does not."""
    place = Path(tritonclient.__path__[0], "grpc", "model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(protobuf: ModuleType, folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(), protobuf.ModelConfig())


def test_a_repository_holds_both_models_and_configurations_that_triton_parses(
    tiny_model_path: Path, tmp_path: Path, protobuf: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(tiny_model_path), "--triton", str(tmp_path / "models"), "--name", "digits"]) == 0
    assert capsys.readouterr().out.count("wrote ") == 2
    files = sorted(str(path.relative_to(tmp_path / "models")) for path in (tmp_path / "models").rglob("*"))
    assert [name for name in files if "." in name] == [
        "digits/1/model.onnx",
        "digits/1/model.py",
        "digits/config.pbtxt",
        "digits_onnx/1/model.onnx",
        "digits_onnx/config.pbtxt",
    ]
    assert (tmp_path / "models/digits/1/model.onnx").read_bytes() == tiny_model_path.read_bytes()
    for name, backend in (("digits", "python"), ("digits_onnx", "onnxruntime")):
        config = parsed(protobuf, tmp_path / "models" / name)
        assert (config.name, config.backend, config.max_batch_size) == (name, backend, 64)
        assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [
            ("image", protobuf.TYPE_FP32, [1, 8, 8])
        ]
        assert [(one.name, one.data_type, list(one.dims)) for one in config.output] == [
            ("label", protobuf.TYPE_INT64, [1]),
            ("adversarial", protobuf.TYPE_BOOL, [1]),
            ("abstained", protobuf.TYPE_BOOL, [1]),
        ]
        assert config.HasField("dynamic_batching")
        assert not config.dynamic_batching.HasField("default_queue_policy")
        assert not config.dynamic_batching.priority_queue_policy
        assert "queue_policy" not in (tmp_path / "models" / name / "config.pbtxt").read_text()
        assert [one.kind for one in config.instance_group] == [protobuf.ModelInstanceGroup.KIND_CPU]
        assert config.parameters["classes"].string_value == '["0","1","2","3","4","5","6","7","8","9"]'


def test_shapes_and_types_are_those_of_the_graph_with_the_batch_left_out(
    tiny_model_path: Path, tmp_path: Path, protobuf: ModuleType
) -> None:
    write_repository(open_model_file(tiny_model_path), tmp_path, evidence=True, max_batch=8, device="cuda")
    session = onnxruntime.InferenceSession(tiny_model_path)
    given = {one.name: (one.type, one.shape[1:]) for one in session.get_outputs()}
    names = {"TYPE_FP32": "float", "TYPE_FP64": "double", "TYPE_INT64": "int64", "TYPE_BOOL": "bool"}
    for name in ("tiny", "tiny_onnx"):
        config = parsed(protobuf, tmp_path / name)
        assert config.max_batch_size == 8
        assert [one.kind for one in config.instance_group] == [protobuf.ModelInstanceGroup.KIND_GPU]
        assert [one.name for one in config.output] == list(Verdicts.FIELDS)
        for one in config.output:
            kind, shape = given[one.name]
            assert kind == f"tensor({names[protobuf.DataType.Name(one.data_type)]})"
            assert list(one.dims) == (shape or [1])
            assert one.HasField("reshape") == (not shape and name == "tiny_onnx")
            assert list(one.reshape.shape) == []


def test_class_names_of_every_kind_come_through(tiny_model_path: Path, tmp_path: Path, protobuf: ModuleType) -> None:
    file = open_model_file(tiny_model_path)
    names = ('a "b"', "c\\d", "e\nf", "Ähre", "狗", *"56789")
    write_model_file(file.proto, file.manifest.model_copy(update={"classes": names}), tmp_path / "named.onnx")
    write_repository(open_model_file(tmp_path / "named.onnx"), tmp_path / "models")
    said = parsed(protobuf, tmp_path / "models" / "named").parameters["classes"].string_value
    assert tuple(json.loads(said)) == names


def test_external_data_travel_with_the_file(tiny_model_path: Path, tmp_path: Path) -> None:
    file = open_model_file(tiny_model_path)
    write_model_file(file.proto, file.manifest, tmp_path / "large.onnx", external_data=True)
    written = open_model_file(tmp_path / "large.onnx")
    write_repository(written, tmp_path / "models")
    for name in ("large", "large_onnx"):
        copied = tmp_path / "models" / name / "1" / "model.onnx"
        assert (copied.parent / written.data_locations[0]).is_file()
        assert open_model_file(copied).manifest.weights_sha256 == file.manifest.weights_sha256


def test_what_cannot_be_written_is_said_in_one_line_and_nothing_is_left(
    tiny_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: object) -> str:
        assert run(["export", *map(str, arguments)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    models = tmp_path / "models"
    assert "give --triton DIR or --tensorrt DIR, one of the two" in refused(tiny_model_path)
    assert "'a/b' is no name of a Triton model" in refused(tiny_model_path, "--triton", models, "--name", "a/b")
    assert "does not exist" in refused(tmp_path / "none.onnx", "--triton", models)
    (models / "tiny_onnx").mkdir(parents=True)
    assert "tiny_onnx is there already; give another --name" in refused(tiny_model_path, "--triton", models)
    assert [path.name for path in models.iterdir()] == ["tiny_onnx"]
    (tmp_path / "file").touch()
    assert "cannot be written" in refused(tiny_model_path, "--triton", tmp_path / "file" / "models")
