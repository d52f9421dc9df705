import json
import operator
import re
import shutil
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from s2ap_defend import DefendedClassifier, ModelFileError
from s2ap_defend.files import check_writable, replace_file
from s2ap_defend.manifest import METADATA_KEY
from s2ap_defend.model_file import graph_sha256, open_model_file, weights_sha256, write_model_file


def test_a_file_opens_verified_and_passes_the_full_checker(tiny_model_path: Path) -> None:
    opened = open_model_file(tiny_model_path)
    onnx.checker.check_model(opened.proto, full_check=True)
    assert opened.manifest.weights_sha256 == weights_sha256(opened.proto)
    assert {opset.domain for opset in opened.proto.opset_import} <= {"", "ai.onnx"}
    assert not opened.proto.functions


def test_weights_in_external_data_give_the_same_verdicts_and_hashes(
    tiny_model_path: Path, tmp_path: Path, random_images: np.ndarray
) -> None:
    opened = open_model_file(tiny_model_path)
    path = tmp_path / "apart.onnx"
    write_model_file(opened.proto, opened.manifest, path, external_data=True)
    data = f"apart.onnx.{opened.manifest.weights_sha256[:12]}.data"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["apart.onnx", data])
    assert open_model_file(path).manifest == opened.manifest
    together = DefendedClassifier.load(tiny_model_path, device="cpu")(random_images)
    assert np.array_equal(DefendedClassifier.load(path, device="cpu")(random_images).votes, together.votes)
    (tmp_path / data).unlink()
    with pytest.raises(ModelFileError):
        open_model_file(path)


def test_a_changed_byte_in_the_weights_is_found(tiny_model_path: Path, tmp_path: Path) -> None:
    proto = onnx.load(tiny_model_path)
    weights = next(tensor.raw_data for tensor in proto.graph.initializer if len(tensor.raw_data) > 64)
    data = bytearray(tiny_model_path.read_bytes())
    place = bytes(data).find(weights)
    data[place + 2] ^= 1
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(data)
    with pytest.raises(ModelFileError, match="was changed after it was written: its weights have SHA-256"):
        open_model_file(changed)


def test_a_changed_node_is_found(tiny_model_path: Path, tmp_path: Path) -> None:
    proto = onnx.load(tiny_model_path)
    proto.graph.node[0].name = "other"
    onnx.save_model(proto, tmp_path / "changed.onnx")
    with pytest.raises(ModelFileError, match="its graph have SHA-256"):
        open_model_file(tmp_path / "changed.onnx")


def test_test_tables_that_differ_from_the_graph_are_found(tiny_model_path: Path, tmp_path: Path) -> None:
    proto = onnx.load(tiny_model_path)
    manifest = json.loads(proto.metadata_props[0].value)
    manifest["test"]["upper"][0] = 99.0
    proto.metadata_props[0].value = json.dumps(manifest)
    onnx.save_model(proto, tmp_path / "changed.onnx")
    with pytest.raises(ModelFileError, match="test/upper differ"):
        open_model_file(tmp_path / "changed.onnx")


@pytest.mark.parametrize(
    ("table", "changes", "message"),
    [
        (("members", 1), {"vote_weight": 0.75}, "the manifest's test/vote_weights differ from the graph's"),
        (("members", 1), {"sees": "purified"}, "says that member 2 sees 'purified', in the graph it sees 'raw'"),
        (("members", 5), {"sees": "raw"}, "says that member 6 sees 'raw', in the graph it sees 'purified'"),
        (("decision",), {"answer": "robust"}, "differ from the graph's; export the model again"),
        (("decision",), {"jury_share": 0.5}, "the manifest's test/jury_share differ from the graph's"),
        (("decision",), {"purify": "suspicious"}, "says purify 'suspicious', the graph purifies all images, or none"),
        (("decision",), {"purify": "off"}, "decision.purify is 'off', but the purifier has 2 steps"),
        (("test",), {"signals": []}, "the manifest's test/signal_0_edges differ from the graph's"),
        (("test", "signals", 0), {"increments": [0.0, 1.0]}, "the manifest's test/signal_0_increments differ"),
        (("test",), {"opening": 3}, "opening is 3; it must be 1 to 2"),
    ],
)
def test_a_decision_that_differs_from_the_graph_is_found(
    table: tuple[str | int, ...], changes: dict[str, object], message: str, tiny_model_path: Path, tmp_path: Path
) -> None:
    proto = onnx.load(tiny_model_path)
    manifest = json.loads(proto.metadata_props[0].value)
    reduce(operator.getitem, table, manifest).update(changes)
    proto.metadata_props[0].value = json.dumps(manifest)
    onnx.save_model(proto, tmp_path / "changed.onnx")
    with pytest.raises(ModelFileError, match=re.escape(message)):
        open_model_file(tmp_path / "changed.onnx")


def test_outputs_other_than_those_of_the_version_are_refused(tiny_model_path: Path, tmp_path: Path) -> None:
    message = r"changed\.onnx: a file of version 4 has the outputs label, .*, abstained; found label, .*error; export"
    manifest = open_model_file(tiny_model_path).manifest
    proto = onnx.load(tiny_model_path)
    del proto.graph.output[-1]
    with pytest.raises(ModelFileError, match=message):
        write_model_file(proto, manifest, tmp_path / "changed.onnx")
    assert not list(tmp_path.iterdir())
    sealed = manifest.model_copy(update={"graph_sha256": graph_sha256(proto)})
    proto.metadata_props[0].value = sealed.to_json()
    onnx.save_model(proto, tmp_path / "changed.onnx")
    with pytest.raises(ModelFileError, match=message):
        open_model_file(tmp_path / "changed.onnx")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("classes", ["cat", "dog"], "the graph gives probabilities [N, 10], by the manifest it is [N, 2]"),
        ("classes", [*map(str, range(1000))], "the graph gives probabilities [N, 10], by the manifest it is [N, 1000]"),
        (
            "input",
            {"channels": 3, "height": 8, "width": 8},
            "the graph gives purified [N, 1, 8, 8], by the manifest it is [N, 3, 8, 8]",
        ),
    ],
)
def test_classes_and_images_other_than_those_of_the_graph_are_refused(
    key: str, value: object, message: str, tiny_model_path: Path, tmp_path: Path
) -> None:
    proto = onnx.load(tiny_model_path)
    proto.metadata_props[0].value = json.dumps({**json.loads(proto.metadata_props[0].value), key: value})
    onnx.save_model(proto, tmp_path / "changed.onnx")
    with pytest.raises(ModelFileError, match=re.escape(message)):
        open_model_file(tmp_path / "changed.onnx")


def test_a_plain_onnx_model_is_refused_with_the_command_that_hardens_it(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1])
    answer = helper.make_tensor_value_info("label", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["label"])], "plain", [value], [answer])
    onnx.save_model(helper.make_model(graph), tmp_path / "plain.onnx")
    with pytest.raises(
        ModelFileError, match=r"without a defence; make one with: s2ap-defend harden .* --onnx \S*plain\.onnx"
    ):
        open_model_file(tmp_path / "plain.onnx")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(tiny_model_path: Path, tmp_path: Path, share: float) -> None:
    data = tiny_model_path.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelFileError, match=r"truncated|was changed|without a defence"):
        open_model_file(tmp_path / "cut.onnx")


@pytest.mark.parametrize("change", [{"dims": 7}, {"data_type": 0}])
def test_tensors_that_do_not_hold_what_they_say_are_refused(
    change: dict[str, int], tiny_model_path: Path, tmp_path: Path
) -> None:
    proto = onnx.load(tiny_model_path)
    tensor = proto.graph.initializer[0]
    tensor.dims.extend([change["dims"]] if "dims" in change else [])
    tensor.data_type = change.get("data_type", tensor.data_type)
    (tmp_path / "damaged.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelFileError, match=r"damaged\.onnx is damaged \(.*\); fetch or export it again"):
        open_model_file(tmp_path / "damaged.onnx")


def test_a_file_that_is_no_onnx_model_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello, this is no model at all")
    with pytest.raises(ModelFileError, match=r"text\.onnx is truncated or no ONNX model|holds no ONNX graph"):
        open_model_file(tmp_path / "text.onnx")
    with pytest.raises(ModelFileError, match=re.escape("missing.onnx does not exist")):
        open_model_file(tmp_path / "missing.onnx")
    with pytest.raises(ModelFileError, match=r" is a folder; name a model file"):
        open_model_file(tmp_path)


def test_a_file_of_another_version_is_refused(tiny_model_path: Path, tmp_path: Path) -> None:
    proto = onnx.load(tiny_model_path)
    entry = next(entry for entry in proto.metadata_props if entry.key == METADATA_KEY)
    entry.value = entry.value.replace('"format_version":4', '"format_version":3')
    onnx.save_model(proto, tmp_path / "older.onnx")
    with pytest.raises(ModelFileError, match=r"older\.onnx carries manifest version 3, .* harden its recipe again"):
        open_model_file(tmp_path / "older.onnx")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tiny_model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    shutil.copy(tiny_model_path, path)
    opened = open_model_file(path)
    before = path.read_bytes()
    data = f"model.onnx.{opened.manifest.weights_sha256[:12]}.data"
    (tmp_path / data).mkdir()  # the data file cannot take this name
    with pytest.raises(ModelFileError, match="cannot be written"):
        write_model_file(opened.proto, opened.manifest, path, external_data=True)
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["model.onnx", data])


def test_an_output_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(ModelFileError, match="cannot be written"):
        check_writable(tmp_path / "file" / "model.onnx")
    with pytest.raises(ModelFileError, match="cannot be written"):
        check_writable(tmp_path / "file" / "folder" / "model.onnx")


def test_asking_whether_an_output_can_be_written_creates_nothing_and_writing_makes_its_folder(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "dir" / "model.onnx"
    check_writable(path)
    assert not list(tmp_path.iterdir())
    opened = open_model_file(tiny_model_path)
    write_model_file(opened.proto, opened.manifest, path)
    assert open_model_file(path).manifest.test == opened.manifest.test
    replace_file(tmp_path / "more" / "figures.json", b"{}")
    assert (tmp_path / "more" / "figures.json").read_bytes() == b"{}"


def without_bank(proto: ModelProto) -> None:
    next(tensor for tensor in proto.graph.initializer if tensor.name == "purifier/bank").name = "purifier/other"


def with_other_signs(proto: ModelProto) -> None:
    bank = next(tensor for tensor in proto.graph.initializer if tensor.name == "purifier/bank")
    bank.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(bank), bank.name))


def with_more_directions(proto: ModelProto) -> None:
    bank = next(tensor for tensor in proto.graph.initializer if tensor.name == "purifier/bank")
    bank.CopyFrom(numpy_helper.from_array(np.repeat(numpy_helper.to_array(bank), 2, axis=0), bank.name))


def with_half_weights(proto: ModelProto) -> None:
    proto.graph.initializer.append(helper.make_tensor("purifier/half", TensorProto.FLOAT16, [1], [1.0]))


def as_it_is(proto: ModelProto) -> None:
    del proto


@pytest.mark.parametrize(
    ("change", "said", "message"),
    [
        (without_bank, {}, r"the graph has no purifier/bank, the manifest's purifier says steps 2 with bank_size 2"),
        (
            with_other_signs,
            {},
            r"purifier/bank with SHA-256 \w{12}\.\.\., the manifest's purifier says bank_sha256 \w{12}",
        ),
        (with_more_directions, {}, r"purifier/bank of shape \(4, 1, 8, 8\), .* says \(2, 1, 8, 8\)"),
        (
            as_it_is,
            {"steps": 0, "sigmas": ()},
            r"a purifier of \d+ convolutions, .* says steps 0, which is no purifier",
        ),
        (with_half_weights, {}, r"purifier weights in float16, .* says precision float32"),
        (as_it_is, {"precision": "float16"}, r"purifier weights in float32, .* says precision float16"),
    ],
)
def test_a_purifier_other_than_the_manifest_says_is_found(
    tiny_model_path: Path,
    tmp_path: Path,
    change: Callable[[ModelProto], None],
    said: dict[str, object],
    message: str,
) -> None:
    opened = open_model_file(tiny_model_path)
    change(opened.proto)
    purifier = opened.manifest.purifier.model_copy(update={"choice": None, **said})
    decision = opened.manifest.decision.model_copy(update={"purify": "off" if purifier.off else "always"})
    manifest = opened.manifest.model_copy(update={"purifier": purifier, "decision": decision})
    write_model_file(opened.proto, manifest, tmp_path / "other.onnx")
    with pytest.raises(ModelFileError, match=message + ".*export the model again"):
        open_model_file(tmp_path / "other.onnx")
