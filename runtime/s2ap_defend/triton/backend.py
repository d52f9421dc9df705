"""The model of Triton's python backend: a defended classifier behind Triton's queue.

Triton imports it through the `model.py` that `s2ap_defend.triton.repository` writes, and alone has the module
`triton_python_backend_utils`. Requests that Triton batches are checked one by one, so that one with bad pixels spoils
no other, asked together, and answered one by one; an image's verdict does not depend on its neighbours.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.engines import Device
from s2ap_defend.errors import DefendError
from s2ap_defend.serve.served import INPUT
from s2ap_defend.types import Float32, Verdicts

__all__ = ["MODEL_FILE", "TritonPythonModel"]

MODEL_FILE = "model.onnx"
_DEVICES: dict[str, Device] = {"CPU": "cpu", "GPU": "cuda"}


class TritonPythonModel:
    """What Triton calls; the names are Triton's."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model file and ask it about one image.

        Args:
            args: Triton's: folder and version of the model, its configuration as JSON, and the kind of device.

        Raises:
            DefendError: If the file or the device cannot be used; Triton then does not load the model.
        """
        self._utils = import_module("triton_python_backend_utils")
        config = json.loads(args["model_config"])
        self._outputs = tuple(str(output["name"]) for output in config["output"])
        path = Path(args["model_repository"], args["model_version"], MODEL_FILE)
        self._classifier = DefendedClassifier.load(path, device=_DEVICES.get(args["model_instance_kind"], "cpu"))
        self._classifier(np.full((1, *self._classifier.input_shape), 0.5, dtype=np.float32))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests, each with one response, in their order.

        Args:
            requests: Of Triton, each with the input `image`, float32 [n, C, H, W].
        """
        responses: list[Any] = [None] * len(requests)
        good: dict[int, Float32] = {}
        for i, request in enumerate(requests):
            try:
                tensor = self._utils.get_input_tensor_by_name(request, INPUT)
                good[i] = self._classifier.validate(tensor.as_numpy())
            except DefendError as error:
                responses[i] = self._failed(error)
        if good:
            try:
                verdicts = self._classifier(np.concatenate(list(good.values())))
            except DefendError as error:
                return [self._failed(error) if response is None else response for response in responses]
            start = 0
            for i, images in good.items():
                responses[i] = self._answer(verdicts.rows(slice(start, start + len(images))))
                start += len(images)
        return responses

    def _failed(self, error: DefendError) -> Any:  # noqa: ANN401 - a class of Triton
        return self._utils.InferenceResponse(output_tensors=[], error=self._utils.TritonError(str(error)))

    def _answer(self, verdicts: Verdicts) -> Any:  # noqa: ANN401 - a class of Triton
        values = ((name, getattr(verdicts, name)) for name in self._outputs)
        shaped = ((name, value[:, None] if value.ndim == 1 else value) for name, value in values)
        tensors = [self._utils.Tensor(name, np.ascontiguousarray(value)) for name, value in shaped]
        return self._utils.InferenceResponse(output_tensors=tensors)
