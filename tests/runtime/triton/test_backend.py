"""The model.py of a repository, loaded and called as Triton's python backend does, with a stand-in of its module."""

import importlib.util
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from s2ap_defend import DefendedClassifier, ModelFileError
from s2ap_defend.model_file import open_model_file
from s2ap_defend.triton.repository import write_repository
from s2ap_defend.types import Verdicts


class Tensor:
    def __init__(self, name: str, data: np.ndarray) -> None:
        self._name, self._data = name, data

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._data


@dataclass
class TritonError:
    message: str


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor]
    error: TritonError | None = None


@dataclass
class Request:
    inputs: dict[str, Tensor] = field(default_factory=dict)


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    return request.inputs.get(name)


@pytest.fixture
def utils(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What the backend has of `triton_python_backend_utils`, which exists inside of Triton alone."""
    module = ModuleType("triton_python_backend_utils")
    for one in (Tensor, TritonError, InferenceResponse, get_input_tensor_by_name):
        setattr(module, one.__name__, one)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def loaded(repository: Path, name: str, outputs: tuple[str, ...]) -> Any:
    """The model of a repository, initialised as Triton does."""
    spec = importlib.util.spec_from_file_location("model", repository / name / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps({"output": [{"name": one} for one in outputs]}),
            "model_repository": str(repository / name),
            "model_version": "1",
            "model_instance_kind": "CPU",
        }
    )
    return model


def asking(images: np.ndarray) -> Request:
    return Request({"image": Tensor("image", images)})


@pytest.mark.usefixtures("utils")
def test_requests_that_are_batched_get_their_own_verdicts(tiny_model_path: Path, tmp_path: Path) -> None:
    write_repository(open_model_file(tiny_model_path), tmp_path, evidence=True)
    model = loaded(tmp_path, "tiny", Verdicts.FIELDS)
    images = np.random.default_rng(0).random((6, 1, 8, 8), dtype=np.float32)
    responses = model.execute([asking(images[:1]), asking(images[1:4]), asking(images[4:])])
    expected, start = DefendedClassifier.load(tiny_model_path, device="cpu")(images), 0
    for response, count in zip(responses, (1, 3, 2), strict=True):
        assert response.error is None
        assert [tensor.name() for tensor in response.output_tensors] == list(Verdicts.FIELDS)
        for tensor in response.output_tensors:
            value = getattr(expected, tensor.name())[start : start + count]
            np.testing.assert_array_equal(tensor.as_numpy(), value[:, None] if value.ndim == 1 else value)
        start += count


@pytest.mark.usefixtures("utils")
def test_one_bad_request_is_refused_and_spoils_no_other(tiny_model_path: Path, tmp_path: Path) -> None:
    write_repository(open_model_file(tiny_model_path), tmp_path)
    model = loaded(tmp_path, "tiny", ("label", "adversarial"))
    images = np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32)
    broken = images[:1].copy()
    broken[0, 0, 0, 0] = np.nan
    first, second, third, fourth = model.execute(
        [asking(images[:1]), asking(broken), asking(np.zeros((1, 3, 8, 8), np.float32)), asking(images[1:])]
    )
    expected = DefendedClassifier.load(tiny_model_path, device="cpu")(images)
    assert first.output_tensors[0].as_numpy().tolist() == [[expected.label[0]]]
    assert fourth.output_tensors[0].as_numpy().tolist() == [[expected.label[1]]]
    assert [tensor.name() for tensor in first.output_tensors] == ["label", "adversarial"]
    assert second.output_tensors == third.output_tensors == []
    assert "NaN or infinite values" in second.error.message
    assert "[1, 3, 8, 8]" in third.error.message
    assert all(response.error for response in model.execute([asking(broken)]))


@pytest.mark.usefixtures("utils")
def test_a_damaged_file_is_not_loaded(tiny_model_path: Path, tmp_path: Path) -> None:
    write_repository(open_model_file(tiny_model_path), tmp_path)
    path = tmp_path / "tiny/1/model.onnx"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError):
        loaded(tmp_path, "tiny", ("label",))
