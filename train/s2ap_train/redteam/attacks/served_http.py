"""A running server as the system under attack: everything that the attacker learns comes over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from s2ap_defend.errors import RecipeError
from s2ap_defend.sequential import SequentialTest
from s2ap_defend.types import Bool, Float32, Int64, Verdicts
from s2ap_train.adaptive.systems import RIGHT, System, judge
from s2ap_train.data import ImageSet
from s2ap_train.statistics.outcome import Outcome

__all__ = ["ServedSystem"]

_INPUT = "image"
_VISIBLE = ("label", "adversarial", "abstained")
_BYTES_AT_ONCE = 4 * 2**20
_ROWS_AT_ONCE = 256
_BUSY = {"429", "503"}
_WAITS_S = (0.1, 0.3, 1.0, 3.0)
_TRY_IT = "start one with s2ap-defend serve MODEL and give its address as host:port"
T = TypeVar("T")


class ServedSystem:
    """A server of the Open Inference Protocol v2, asked through NVIDIA's client for it (tritonclient).

    Where the server exposes its evidence the outcome is that of the file itself. Where it hides it, the score has four
    levels that follow from label and flag: right and not flagged, right and flagged, wrong and flagged (or not
    answered), won; `members_used` is 0.

    Args:
        address: host:port, with or without http:// before it.
        test: The sequential test of the file that is served, which scales the evidence.

    Attributes:
        shape: (C, H, W) of its images.
        exposes_evidence: Whether it answers with more than label, flag and abstention.
        requests: Requests for verdicts so far.

    Raises:
        RecipeError: If no server answers there, or it serves no model, or several.
    """

    def __init__(self, address: str, *, test: SequentialTest) -> None:
        from tritonclient.http import InferenceServerClient

        self.address = address.removeprefix("http://").rstrip("/")
        self._test = test
        self.requests = 0
        self._client = InferenceServerClient(self.address)
        statistics = self._call(self._client.get_inference_statistics)
        models = [model["name"] for model in statistics["model_stats"]]
        if len(models) != 1:
            raise RecipeError(f"the server at {self.address} serves {len(models)} models, expected the one; {_TRY_IT}")
        self._model = models[0]
        described = self._call(lambda: self._client.get_model_metadata(self._model))
        inputs = {entry["name"]: entry for entry in described["inputs"]}
        outputs = {entry["name"] for entry in described["outputs"]}
        if _INPUT not in inputs or not outputs.issuperset(_VISIBLE):
            raise RecipeError(
                f"model {self._model!r} at {self.address} takes {', '.join(inputs)} and gives {', '.join(outputs)}, "
                f"expected {_INPUT} and {', '.join(_VISIBLE)}; {_TRY_IT}"
            )
        self.shape = tuple(int(size) for size in inputs[_INPUT]["shape"][1:])
        self.exposes_evidence = outputs.issuperset(Verdicts.FIELDS)

    def __enter__(self) -> Self:
        """The system itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __call__(self, images: Float32, labels: Int64) -> Outcome:
        """Outcome for images [N, C, H, W] whose true labels [N] the attacker knows.

        Raises:
            RecipeError: If the server is gone, stays busy or refuses the images, or they have another shape.
        """
        if images.shape[1:] != self.shape:
            raise RecipeError(
                f"the images have shape {list(images.shape[1:])}, the model {self._model!r} at {self.address} takes "
                f"{list(self.shape)}; attack the data of its recipe"
            )
        rows = max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // max(1, images[0].nbytes))) if len(images) else 1
        answers = [self._ask(images[start : start + rows]) for start in range(0, len(images), rows)]
        joined = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]} if answers else {}
        if self.exposes_evidence:
            return judge(Verdicts(**joined), labels, self._test)
        return _from_decisions(joined["label"], joined["adversarial"], joined["abstained"], labels)

    def check_serves(self, system: System, data: ImageSet) -> None:
        """Compare its answers on clean images with those of the file that is to be attacked.

        Raises:
            RecipeError: If more than one in fifty differs: ties that lie within rounding may fall on another side, and
                no more.
        """
        here, there = system(data.images, data.labels), self(data.images, data.labels)
        differs = (here.label != there.label) | (here.flagged != there.flagged) | (here.abstained != there.abstained)
        if differs.sum() > len(data) // 50:
            raise RecipeError(
                f"the server at {self.address} serves another model: it answers {int(differs.sum())} of {len(data)} "
                "clean images otherwise than the file that is attacked; serve that file"
            )

    def _ask(self, images: Float32) -> dict[str, np.ndarray]:
        from tritonclient.http import InferInput, InferRequestedOutput

        tensor = InferInput(_INPUT, list(images.shape), "FP32")
        tensor.set_data_from_numpy(np.ascontiguousarray(images), binary_data=True)
        names = Verdicts.FIELDS if self.exposes_evidence else _VISIBLE
        wanted = [InferRequestedOutput(name, binary_data=True) for name in names]
        self.requests += 1
        answer = self._call(lambda: self._client.infer(self._model, [tensor], outputs=wanted))
        return {name: answer.as_numpy(name) for name in names}

    def _call(self, request: Callable[[], T]) -> T:
        """What a request returns; it is sent again while the server is busy."""
        from tritonclient.utils import InferenceServerException

        for wait_s in (*_WAITS_S, None):
            try:
                return request()
            except OSError as error:
                raise RecipeError(f"no server answers at {self.address} ({error}); {_TRY_IT}") from error
            except InferenceServerException as error:
                if wait_s is None or error.status() not in _BUSY:
                    said: Any = error.message()
                    raise RecipeError(
                        f"the server at {self.address} refused ({error.status()}): {said}; see its log"
                    ) from error
                time.sleep(wait_s)
        raise AssertionError("the last request neither returned nor raised")


def _from_decisions(label: Int64, flagged: Bool, abstained: Bool, labels: Int64) -> Outcome:
    """Outcome of answers without evidence; among four levels of the score, won is below zero."""
    wrong = label != labels
    score = np.where(wrong, 1.0, np.where(flagged | abstained, RIGHT / 2, RIGHT))
    return Outcome(
        label=label,
        flagged=flagged,
        abstained=abstained,
        members_used=np.zeros(len(label), dtype=np.int64),
        score=np.where(wrong & ~flagged & ~abstained, -1.0, score),
    )
