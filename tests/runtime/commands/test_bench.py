import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2ap_defend import DefendedClassifier
from s2ap_defend.commands.main import run

QUICK = ["--rounds", "1", "--threads", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, random_images: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, random_images)
    return path


def start(*arguments: str | Path) -> int:
    return run(["bench", *map(str, arguments)])


@pytest.fixture(scope="module")
def timed(tiny_model_path: Path, images: Path) -> tuple[dict[str, Any], str, str]:
    """(JSON, standard output, standard error) of a run."""
    json_file, out, err = images.with_name("new") / "bench.json", io.StringIO(), io.StringIO()
    options = ["--batch", "64,1,64", "--clock", "processor", "--data", images, "--soak", "20", "--json", json_file]
    with redirect_stdout(out), redirect_stderr(err):
        assert start(tiny_model_path, *QUICK, *options) == 0
    return json.loads(json_file.read_text()), out.getvalue(), err.getvalue()


def test_a_file_is_timed_in_every_batch_size_next_to_its_classifier_and_its_stages(
    timed: tuple[dict[str, Any], str, str], tiny_model_path: Path, images: Path, random_images: np.ndarray
) -> None:
    found, out, err = timed
    assert [one["batch"] for one in found["batches"]] == [1, 64]
    assert [one["calls"] for one in found["batches"]] == [64, 1]
    verdicts = DefendedClassifier.load(tiny_model_path, device="cpu")(random_images)
    for one in found["batches"]:
        assert one["bare"]["times_bare"] == 1.0
        assert one["executors"]["whole"]["times_bare"] > 1.0
        assert one["purified"] == 1.0
        assert verdicts.members_used.min() <= one["members_asked"] <= verdicts.members_used.max()
        assert {"purifier", "classifier", "member_000", "member_005"} <= {stage["scope"] for stage in one["stages"]}
        inside = sum(stage["ms"] for stage in one["stages"])
        whole = one["batch"] / one["executors"]["whole"]["images_per_s"] * 1e3
        assert one["beyond_ms"]["whole"] == pytest.approx(whole - inside)
        assert 0 < one["outside_ms"]["whole"] < whole
        assert one["outside_share"]["staged"] > one["outside_share"]["whole"]
        parts = one["outside_parts"]["staged"]
        said = [parts[f"{where}_ms"] for where in ("before", "between", "behind")]
        assert min(said) > 0
        if one["batch"] == 64:  # of one call the parts are of one round
            assert sum(said) == pytest.approx(one["outside_ms"]["staged"])
        assert one["floor_times_bare"] > 1.0
    assert found["memory"]["whole"]["ready_bytes"] > found["memory"]["bare classifier"]["ready_bytes"] > 0
    assert found["traffic"] == {"kind": "clean", "source": f"64 clean from {images}", "typical": True}
    assert found["machine"]["onnxruntime"]
    assert f"Traffic: 64 clean from {images}\n" in err
    assert "Processor time of a call on CPUExecutionProvider, 1 rounds" in out
    for said in (
        "bare classifier",
        "purifier",
        "whole: beyond the stages",
        "staged: outside the engines",
        "Floor:",
        "Memory, whole",
        "not judged: med",
    ):
        assert said in out


def test_batches_in_a_row_and_threads_at_once_are_compared_with_the_first(
    timed: tuple[dict[str, Any], str, str],
) -> None:
    document, printed, _ = timed
    assert set(document["steady"]) == {"whole", "staged"}
    for found in document["steady"].values():
        assert (found["batches"], found["different"], found["threads"], found["threads_different"]) == (20, 0, 8, 0)
    assert "holds   staged, other verdicts among 20 batches in a row: 0, at most 0" in printed
    assert "not judged: whole: memory over 20 batches; it counts from 10,000 on" in printed
    assert "not measured here: ten times faster than the published serial protocol" in printed


def test_without_images_noise_is_timed_with_a_warning_and_its_cost_is_not_judged(
    tiny_model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tiny_model_path, *QUICK, "--batch", "8", "--executor", "whole") == 0
    captured = capsys.readouterr()
    assert "Traffic: 64 images of uniform noise, for want of clean ones" in captured.err
    assert "Warning: noise is no clean image" in captured.err
    assert "cost with purification" not in captured.out
    assert "this was uniform noise" in captured.out


@pytest.mark.parametrize("batch", ["", "0", "1,x", "1,,8", "-4", "1.5", "5000"])
def test_a_list_that_is_none_of_batch_sizes_is_refused(
    batch: str, tiny_model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tiny_model_path, "--batch", batch) == 2
    assert f"{batch!r} is no list of batch sizes from 1 to 4096, such as 1,8,64" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.onnx"], "missing.onnx"),
        (["{model}", "--device", "abacus"], "'abacus' is not one of 'auto', 'cpu', 'cuda', 'tensorrt'"),
        (["{model}", "--executor", "half"], "'half' is not"),
        (["{model}", "--traffic", "mixed"], "--traffic mixed needs attacked images, and there are none next to"),
        (["{model}", "--data", "missing.npz"], "missing.npz cannot be read: No such file or directory"),
        (["{model}", "--rounds", "0"], "0 is not in the range x>=1"),
        (["{model}", "--clock", "processor", "--device", "cpu"], "use --device cpu --threads 1, or --clock wall"),
        (["{model}", "--resize", "trained"], "does not say that its training images were resized"),
        (["{model}", "--json", "{folder}"], "is a folder; name a file to write"),
        (["{model}", "--json", "/proc/none/bench.json"], "/proc/none/bench.json cannot be written"),
    ],
)
def test_what_cannot_be_timed_is_one_line_before_anything_is_timed(
    arguments: list[str], message: str, tiny_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(*(argument.format(model=tiny_model_path, folder=tmp_path) for argument in arguments)) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.splitlines()[-1].startswith("Error: ")
    assert "Timing" not in captured.err
    assert not captured.out
