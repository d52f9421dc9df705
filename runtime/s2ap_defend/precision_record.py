"""What a manifest says of precision: what the stages compute in, and what that changes against float32."""

from collections.abc import Iterable
from typing import Literal

from onnx import TensorProto
from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from s2ap_defend.manifest_fields import Amount, Count, ManifestTable, Positive, Rate, check_accuracies

__all__ = [
    "Precision",
    "PrecisionComparison",
    "PrecisionFigures",
    "PrecisionRecord",
    "PurifierPrecision",
    "weights_precision",
]

Precision = Literal["float32", "float16_weights", "float16", "int8"]
"""What the convolutions of a stage compute in; 'float16_weights': in float32, with weights that float16 holds."""
PurifierPrecision = Literal["float32", "float16"]
"""The same of a purifier."""


def weights_precision(weights: Iterable[TensorProto]) -> Precision:
    """What the convolutions of a stage compute in, by its tensors: weights that are only rounded are float32."""
    types = {tensor.data_type for tensor in weights}
    return "float16" if TensorProto.FLOAT16 in types else "int8" if TensorProto.INT8 in types else "float32"


class PrecisionFigures(ManifestTable):
    """One of two files of the same networks.

    Attributes:
        clean_accuracy: Clean images answered and right.
        clean_flagged: Clean images flagged.
        label_accuracy: Attacked images whose final label is right, flagged or not.
        robust_accuracy: Attacked images right, flagged or not answered.
        adaptive_accuracy: Images right, flagged or not answered that were attacked through this file's own twin, which
            rounds as the file does; the key is missing where it was not measured, as in older files.
        size_bytes: Of the file.
        milliseconds: Processor time of one of 64 clean images at once, on one thread of the machine that made the file;
            missing likewise.
    """

    clean_accuracy: Rate
    clean_flagged: Rate
    label_accuracy: Rate
    robust_accuracy: Rate
    adaptive_accuracy: Rate | None = None
    size_bytes: Positive
    milliseconds: Amount | None = None

    @model_serializer(mode="wrap")
    def _without_what_was_not_measured(self, serialise: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {key: value for key, value in serialise(self).items() if value is not None}

    @model_validator(mode="after")
    def _right_is_right_or_flagged(self) -> "PrecisionFigures":
        check_accuracies(self.label_accuracy, self.robust_accuracy)
        return self


class PrecisionComparison(ManifestTable):
    """The file compared with that of the same networks in float32, which was calibrated in the same way.

    Attributes:
        split: The clean images.
        samples: How many.
        label_flips: Clean images with another final label than in float32.
        flag_flips: Clean images that are flagged in one of the two, or not answered in one.
        attack: What attacked images were made with, on the networks in float32: they are transferred.
        attacked_samples: How many.
        adaptive_samples: Images that were attacked through the twin of each file; missing where none was, as in older
            files.
        reduced: Of the file.
        float32: Of the other.
    """

    split: str
    samples: Positive
    label_flips: Count
    flag_flips: Count
    attack: str
    attacked_samples: Positive
    adaptive_samples: Positive | None = None
    reduced: PrecisionFigures
    float32: PrecisionFigures

    @model_serializer(mode="wrap")
    def _without_what_was_not_measured(self, serialise: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {key: value for key, value in serialise(self).items() if value is not None}

    @model_validator(mode="after")
    def _flips_are_images(self) -> "PrecisionComparison":
        if max(self.label_flips, self.flag_flips) > self.samples:
            raise ValueError(f"{max(self.label_flips, self.flag_flips)} flips of {self.samples} images")
        return self

    @property
    def in_words(self) -> str:
        """For people."""
        of, single = self.reduced, self.float32
        through = (
            f"{of.adaptive_accuracy:.1%} ({single.adaptive_accuracy:.1%}) of {self.adaptive_samples} attacked through "
            "each file's own twin, "
            if of.adaptive_accuracy is not None and single.adaptive_accuracy is not None
            else ""
        )
        return (
            f"against float32, of {self.samples} {self.split} images {self.label_flips} have another label and "
            f"{self.flag_flips} another flag; {of.clean_accuracy:.1%} clean ({single.clean_accuracy:.1%} in float32), "
            f"{of.label_accuracy:.1%} label right ({single.label_accuracy:.1%}) and {of.robust_accuracy:.1%} right or "
            f"flagged ({single.robust_accuracy:.1%}) of {self.attacked_samples} transferred attacks, "
            f"{through}{of.size_bytes / 1e6:.2f} MB ({single.size_bytes / 1e6:.2f} MB)"
            + (
                f", {of.milliseconds:.3g} ms an image ({single.milliseconds:.3g} ms)"
                if of.milliseconds is not None and single.milliseconds is not None
                else ""
            )
        )


class PrecisionRecord(ManifestTable):
    """What the classifier computes in; members and purifier say so themselves.

    Attributes:
        classifier: Its precision.
        comparison: With the same in float32; null: not measured with this decision.
    """

    classifier: Precision
    comparison: PrecisionComparison | None
