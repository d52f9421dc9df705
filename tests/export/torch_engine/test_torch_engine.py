"""A file on PyTorch gives the verdicts of the file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from s2ap_defend import DefendedClassifier, EngineError, InputError, Verdicts
from s2ap_defend.executors.groups import asked_groups
from s2ap_defend.model_file import ModelFile, open_model_file
from s2ap_export.torch_engine import load_torch
from s2ap_export.torch_engine.joint import joint_ways

GOLDEN = Path(__file__).parents[2] / "contract" / "golden"
LABELS = ("label", "adversarial", "base_label", "members_used", "abstained")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.random((30, 1, 8, 8), dtype=np.float32) * rng.choice([0.3, 1.0], (30, 1, 1, 1)).astype(np.float32)


@pytest.fixture(scope="module", params=["version-4", "version-4-abstaining"])
def file(request: pytest.FixtureRequest) -> ModelFile:
    return open_model_file(GOLDEN / f"{request.param}.onnx")


@pytest.fixture(scope="module")
def expected(file: ModelFile, images: np.ndarray) -> Verdicts:
    return DefendedClassifier.load(file.path, device="cpu", threads=1)(images)


def assert_close(found: Verdicts, expected: Verdicts, tolerance: float) -> None:
    for name in LABELS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    for name in ("probabilities", "purified"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("members", ["apart", "batched"])
def test_verdicts_in_float32_are_those_of_the_file(
    members: str, file: ModelFile, images: np.ndarray, expected: Verdicts
) -> None:
    classifier = load_torch(file.path, device="cpu", members=members)
    assert classifier.provider == f"torch {torch.__version__} on cpu, float32"
    assert_close(classifier(images), expected, 1e-5)


def test_the_faster_way_is_taken_for_each_size(images: np.ndarray) -> None:
    path = GOLDEN / "version-4-abstaining.onnx"
    expected = DefendedClassifier.load(path, device="cpu", threads=1)(images[:3])
    assert_close(load_torch(path, device="cpu", members="measured")(images[:3]), expected, 1e-5)


def test_half_precision_is_that_of_autocast(images: np.ndarray) -> None:
    path = GOLDEN / "version-4-abstaining.onnx"
    found, exact = (load_torch(path, device="cpu", dtype=dtype)(images[:4]) for dtype in ("bfloat16", "float32"))
    assert 1e-5 < np.abs(found.probabilities - exact.probabilities).max() < 0.05  # 8 bits of mantissa, some layers deep


def test_members_of_equal_structure_are_one_network_and_others_are_not(file: ModelFile, images: np.ndarray) -> None:
    manifest = file.manifest
    sees = [member.sees for member in manifest.members]
    groups = asked_groups(manifest.to_test(), sees, manifest.decision.purify, joining="file")
    names, (apart, batched) = joint_ways(file.proto, groups[0], torch.device("cpu"), "measured")
    x = torch.from_numpy(images[:2])
    with torch.inference_mode():
        for name, one, other in zip(names, apart(x), batched(x), strict=True):
            assert one.shape == other.shape, name
            torch.testing.assert_close(one, other, rtol=0, atol=2e-5, msg=name)


def test_what_cannot_be_is_one_error(tmp_path: Path, images: np.ndarray) -> None:
    path = GOLDEN / "version-4.onnx"
    with pytest.raises(EngineError, match="dtype 'int4' is not known; choose float32, bfloat16, float16"):
        load_torch(path, dtype="int4")
    with pytest.raises(EngineError, match="device 'abacus' is not known to PyTorch"):
        load_torch(path, device="abacus")
    with pytest.raises(EngineError, match="device 'meta' is not supported; choose cpu or cuda"):
        load_torch(path, device="meta")
    with pytest.raises(EngineError, match="device 'cuda:99' was asked for, but PyTorch finds"):
        load_torch(path, device="cuda:99")
    with pytest.raises(InputError):
        load_torch(path, device="cpu")(images[:, :, :4])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_cuda_graph_for_each_size_answers_as_the_cpu_does(
    dtype: str, file: ModelFile, images: np.ndarray, expected: Verdicts
) -> None:
    classifier = load_torch(file.path, device="cuda", dtype=dtype)
    for rows in (1, 3, 1, 30):
        found = classifier(images[:rows])
        gap = np.abs(found.probabilities - expected.rows(slice(0, rows)).probabilities).max()
        assert gap < (1e-3 if dtype == "float32" else 0.05)
