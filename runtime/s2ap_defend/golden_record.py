"""Golden inputs and what a file answered to them when it was written: data apart from the manifest."""

import base64
import binascii
import math
from typing import Annotated

import numpy as np
from onnx import ModelProto
from pydantic import Field, ValidationError, model_validator

from s2ap_defend.errors import ModelFileError
from s2ap_defend.manifest_fields import Amount, Count, ManifestTable, Rate
from s2ap_defend.types import Float32, Verdicts

__all__ = ["GOLDEN_KEY", "GoldenRecord", "read_golden"]

GOLDEN_KEY = "s2ap_defend_golden"
"""Their key in the metadata of the ONNX file. Readers that do not know it leave it alone."""


class GoldenRecord(ManifestTable):
    """n images made of numbers, nobody's pictures, and the answers of the machine that wrote the file.

    Attributes:
        pixels: Base64 of n images, unsigned bytes [n, C, H, W]; a pixel is its byte / 255.
        label: Final label of each, and so on: outputs of the file by their names.
        adversarial: Whether it was flagged.
        abstained: Whether it got no answer.
        base_label: The classifier's own label.
        members_used: Members asked.
        log_likelihood_ratio: Evidence when the test stopped, nats.
        probability: The classifier's, of its own label.
        reconstruction_error: Of the last purification step.
    """

    pixels: str
    label: Annotated[tuple[Count, ...], Field(min_length=1)]
    adversarial: tuple[bool, ...]
    abstained: tuple[bool, ...]
    base_label: tuple[Count, ...]
    members_used: tuple[Count, ...]
    log_likelihood_ratio: tuple[float, ...]
    probability: tuple[Rate, ...]
    reconstruction_error: tuple[Amount, ...]

    @model_validator(mode="after")
    def _one_answer_an_image(self) -> "GoldenRecord":
        counts = {name: len(getattr(self, name)) for name in GoldenRecord.model_fields if name != "pixels"}
        if len(set(counts.values())) > 1:
            raise ValueError(f"expected one answer of each kind for an image, found {counts}")
        return self

    def images(self, shape: tuple[int, int, int]) -> Float32:
        """The images, float32 [n, C, H, W] in [0, 1].

        Args:
            shape: (C, H, W) of the file's input.

        Raises:
            ModelFileError: If there are not as many pixels as answers need.
        """
        try:
            pixels = np.frombuffer(base64.b64decode(self.pixels, validate=True), dtype=np.uint8)
        except (binascii.Error, ValueError) as error:
            raise ModelFileError(f"the golden inputs are no base64 ({error}); export the model again") from error
        if pixels.size != len(self.label) * math.prod(shape):
            raise ModelFileError(
                f"the golden inputs hold {pixels.size} pixels, {len(self.label)} images {list(shape)} have "
                f"{len(self.label) * math.prod(shape)}; export the model again"
            )
        return pixels.reshape(-1, *shape).astype(np.float32) / np.float32(255)

    @classmethod
    def of(cls, pixels: np.ndarray, verdicts: Verdicts) -> "GoldenRecord":
        """What a file answered to images of unsigned bytes [n, C, H, W]."""
        return cls(
            pixels=base64.b64encode(np.ascontiguousarray(pixels, dtype=np.uint8).tobytes()).decode(),
            label=tuple(verdicts.label.tolist()),
            adversarial=tuple(verdicts.adversarial.tolist()),
            abstained=tuple(verdicts.abstained.tolist()),
            base_label=tuple(verdicts.base_label.tolist()),
            members_used=tuple(verdicts.members_used.tolist()),
            log_likelihood_ratio=tuple(verdicts.log_likelihood_ratio.tolist()),
            probability=tuple(verdicts.probabilities.max(axis=1).tolist()),
            reconstruction_error=tuple(verdicts.reconstruction_error.tolist()),
        )


def read_golden(proto: ModelProto) -> GoldenRecord | None:
    """The golden inputs of a model; None where it has none.

    Raises:
        ModelFileError: If they cannot be read.
    """
    texts = [entry.value for entry in proto.metadata_props if entry.key == GOLDEN_KEY]
    if not texts:
        return None
    try:
        return GoldenRecord.model_validate_json(texts[0])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "golden inputs"
        raise ModelFileError(
            f"the golden inputs are not valid at {place}: {first['msg']}; export the model again"
        ) from error
