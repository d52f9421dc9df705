"""What `verify` finds in a sound file, in files with planted defects, and on this machine."""

import json
import re
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from s2ap_defend.commands.main import run
from s2ap_defend.engines.onnxruntime import chosen_device
from s2ap_defend.golden_record import GOLDEN_KEY, read_golden
from s2ap_defend.model_file import open_model_file, write_model_file
from s2ap_defend.verification.places import find_places
from s2ap_defend.verification.verify import file_stages, verify_file


def verified(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code and what the command prints with --json, its checks by name."""
    code = run(["verify", str(path), "--json", *options])
    said = json.loads(capsys.readouterr().out)
    return code, said | {"checks": {one["name"]: (one["state"], one["detail"]) for one in said["checks"]}}


def test_a_file_with_golden_answers_is_sound(answered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = verified(answered, capsys)
    assert code == 0
    assert said["sound"]
    assert said["golden"]
    assert said["images"] == 8
    assert {state for state, _ in said["checks"].values()} == {"passed"}
    assert set(said["checks"]) == {
        "model file",
        "onnx",
        "data only",
        "stages",
        "tensorrt",
        "runs on cpu",
        "golden answers",
        "stages and whole",
    }
    assert said["checks"]["golden answers"][1] == "8 golden inputs are answered as where the file was written"


def test_older_files_are_asked_about_generated_images_and_that_is_said(
    tiny_model_path: Path, abstaining_model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, stages in ((tiny_model_path, 8), (abstaining_model_path, 9)):  # the classifier's second run among them
        code, said = verified(path, capsys)
        assert code == 0
        assert not said["golden"]
        assert said["checks"]["golden answers"] == ("skipped", "the file holds none; 8 generated images were asked")
        assert said["checks"]["stages"] == ("passed", f"{stages} cut out, each a valid model that runs alone")
        assert said["checks"]["stages and whole"][0] == "passed"


def test_the_table_says_everything_and_a_verdict(answered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(answered)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "passed golden answers 8 golden inputs are answered" in text
    assert "cpu runs ONNX Runtime" in text
    assert text.endswith("model.onnx: the file can be relied on")


def test_a_device_that_the_machine_lacks_is_named_with_the_reason_and_fails_where_it_is_needed(
    answered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if chosen_device("auto") == "cuda":
        pytest.skip("this machine has a CUDA device")
    code, said = verified(answered, capsys, "--device", "cpu", "--device", "cuda")
    assert code == 1
    devices = {one["device"]: one for one in said["devices"]}
    assert devices["cpu"]["runs"]
    assert not devices["cuda"]["runs"]
    assert "no NVIDIA device" in devices["cuda"]["detail"]
    assert said["checks"]["runs on cuda"] == ("failed", devices["cuda"]["detail"])
    assert said["checks"]["runs on cpu"][0] == "passed"


def test_a_device_without_its_libraries_is_tried_apart_and_the_reason_is_one_line(
    answered: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if chosen_device("auto") == "cuda":
        pytest.skip("this machine has a CUDA device")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    site = Path(onnx.__file__).parents[1]
    places = {one.device: one for one in find_places(file_stages(open_model_file(answered)), [], root=tmp_path)}
    assert places["cpu"].runs
    for device in ("cuda", "tensorrt"):
        assert not places[device].runs
        assert re.search(r"no (CUDA|Tensorrt)ExecutionProvider|\.so|could", places[device].detail)
        assert "\n" not in places[device].detail
        if list(site.glob("nvidia/cu*/lib/libcublasLt.so.*")):  # what pip installed is found, what is not is named
            assert "libcublas" not in places[device].detail
    assert capfd.readouterr() == ("", "")


@pytest.mark.gpu
@pytest.mark.skipif(chosen_device("auto") != "cuda", reason="needs a CUDA device")
def test_on_a_gpu_the_stages_say_what_the_whole_says(answered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = verified(answered, capsys, "--device", "cuda")
    assert code == 0
    assert said["checks"]["stages on cuda"][0] == "passed"


def test_what_tensorrt_refuses_is_the_reason_why_a_file_does_not_run_there(answered: Path) -> None:
    places = find_places(file_stages(open_model_file(answered)), ["stage classifier: node: TensorRT has no Det"])
    said = {place.device: place for place in places}["tensorrt"]
    assert not said.runs
    assert said.detail == "its stages are not for TensorRT: stage classifier: node: TensorRT has no Det"


def test_a_changed_file_fails_and_nothing_else_is_looked_at(
    answered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = onnx.load(answered)
    proto.graph.node[0].name = "other"
    onnx.save_model(proto, tmp_path / "changed.onnx")
    code, said = verified(tmp_path / "changed.onnx", capsys)
    assert code == 1
    assert not said["sound"]
    assert said["checks"]["model file"][0] == "failed"
    assert "was changed after it was written" in said["checks"]["model file"][1]
    assert said["checks"]["everything else"] == ("skipped", "the file could not be opened")
    assert run(["verify", str(tmp_path / "changed.onnx")]) == 1
    assert "1 of 2 checks failed" in capsys.readouterr().out


def test_what_is_not_there_cannot_be_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(tmp_path / "none.onnx")]) == 2
    assert "none.onnx does not exist; name a model file" in capsys.readouterr().err
    assert run(["verify", str(tmp_path)]) == 2
    assert "is a folder; name a model file" in " ".join(capsys.readouterr().err.split())


def planted(answered: Path, path: Path, **answers: Any) -> Path:
    """The file with other golden answers."""
    file = open_model_file(answered)
    golden = read_golden(file.proto)
    assert golden is not None
    write_model_file(file.proto, file.manifest, path, golden=golden.model_copy(update=answers))
    return path


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"label": (0,) * 8, "abstained": (True,) * 8}, "label, abstained;"),
        ({"log_likelihood_ratio": (7.0,) * 8}, ": log_likelihood_ratio;"),
        ({"probability": (0.999,) * 8}, "probability, by 0."),
        ({"reconstruction_error": (1e9,) * 8}, "reconstruction_error, by 1 of the largest"),
    ],
)
def test_answers_other_than_the_golden_ones_are_found(
    answers: dict[str, Any], said: str, answered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = verified(planted(answered, tmp_path / "other.onnx", **answers), capsys)
    assert code == 1
    state, detail = found["checks"]["golden answers"]
    assert state == "failed"
    assert said in detail
    assert [name for name, (state, _) in found["checks"].items() if state == "failed"] == ["golden answers"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid at golden inputs: Invalid JSON"),
        ('{"pixels":""}', "not valid at label: Field required"),
        (None, "the golden inputs hold 3 pixels, 8 images [1, 8, 8] have 512; export the model again"),
    ],
)
def test_golden_inputs_that_cannot_be_read_fail_and_generated_ones_are_asked(
    text: str | None, message: str, answered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = planted(answered, tmp_path / "torn.onnx", pixels="AAAA")
    if text is not None:
        proto = onnx.load(path)
        next(one for one in proto.metadata_props if one.key == GOLDEN_KEY).value = text
        onnx.save_model(proto, path)
    code, found = verified(path, capsys)
    assert code == 1
    state, detail = found["checks"]["golden answers"]
    assert state == "failed"
    assert message in detail
    assert found["checks"]["stages and whole"][0] == "passed"


def test_a_file_whose_stages_say_something_else_than_the_whole_fails(answered: Path, tmp_path: Path) -> None:
    file = open_model_file(answered)
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    output = next(node for node in proto.graph.node if node.output[0] == "purified")
    output.CopyFrom(helper.make_node("Identity", ["test/image"], ["purified"], name=output.name))
    write_model_file(proto, file.manifest, tmp_path / "other.onnx")
    found = {check.name: check for check in verify_file(tmp_path / "other.onnx").checks}
    assert found["stages and whole"].state == "failed"
    assert (
        "differ from the whole file on 0 of 8 images, probabilities and pixels by" in found["stages and whole"].detail
    )
    assert found["stages"].state == "passed"


def test_a_path_of_a_machine_in_a_sealed_file_fails(answered: Path, tmp_path: Path) -> None:
    file = open_model_file(answered)
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    proto.graph.node[3].doc_string = "File /home/somebody/net.py, line 3"
    write_model_file(proto, file.manifest, tmp_path / "traced.onnx")
    found = {check.name: check for check in verify_file(tmp_path / "traced.onnx").checks}
    assert found["data only"].state == "failed"
    assert found["data only"].detail == f"'/home/somebody' in {proto.graph.node[3].name}"
