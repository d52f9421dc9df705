"""The manifest: everything a reader must know of a defended model file besides its graph.

It is JSON under metadata_props["s2ap_defend"], data only: no Python name, path or URL. docs/model-file.md is the
normative description. Unknown keys, another version and contradictory numbers are refused.
"""

import json
import reprlib
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from s2ap_defend.decision_record import DecisionDescription, DecisionSettings, Frontier, FrontierRow, Role, Sees
from s2ap_defend.errors import ModelFileError
from s2ap_defend.manifest_fields import (
    Amount,
    Count,
    ManifestTable,
    Positive,
    Rate,
    Sha256,
    WeaknessRecord,
)
from s2ap_defend.measurement_record import Measurement, Protocol
from s2ap_defend.precision_record import Precision, PrecisionRecord
from s2ap_defend.purifier_record import (
    ChoiceRecord,
    ChoiceRow,
    PurifierDescription,
    PurifierSettings,
    Reference,
    Ungraded,
)
from s2ap_defend.sequential import SequentialTest
from s2ap_defend.sequential_record import CalibrationRecord, SignalTable, TestTables
from s2ap_defend.types import Resize

__all__ = [
    "FORMAT_VERSION",
    "METADATA_KEY",
    "CalibrationRecord",
    "ChoiceRecord",
    "ChoiceRow",
    "DecisionDescription",
    "DecisionSettings",
    "Frontier",
    "FrontierRow",
    "InputDescription",
    "Manifest",
    "Measurement",
    "Member",
    "Protocol",
    "Provenance",
    "PurifierDescription",
    "PurifierSettings",
    "Reference",
    "Seeds",
    "SignalTable",
    "TestTables",
    "Ungraded",
    "WeaknessRecord",
    "read_manifest",
]

METADATA_KEY = "s2ap_defend"
_LEFT_OUT = ("weaknesses", "precision", "sparse_weights", "two_four")
FORMAT_VERSION: Literal[4] = 4


class InputDescription(ManifestTable):
    """The tensor `image`: float32 [N, channels, height, width] in [0, 1].

    Attributes:
        channels: C.
        height: Pixels.
        width: Pixels.
        resize: How training images of other sizes were brought to this one; None: they were taken as they are. The
            key is missing then, as in files that were written before it existed.
    """

    channels: Positive
    height: Positive
    width: Positive
    resize: Resize | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width

    @model_serializer(mode="wrap")
    def _without_none(self, serialise: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {key: value for key, value in serialise(self).items() if value is not None}


class Seeds(ManifestTable):
    """What a member was drawn from: its initial weights, its mask or channels, the order of its training data."""

    initialisation: int
    mask: int
    order: int


class Member(ManifestTable):
    """One pruned member, in the order in which members are asked.

    Attributes:
        role: A 'juror' was trained to be robust and may vote on the label; a 'sensor' only gives evidence.
        sees: The image as it came ('raw'), or behind the purifier ('purified').
        vote_weight: Of its vote on the label, a multiple of 1/256 in [0, 1]; a sensor has 0.
        method: How it was made.
        sparsity: Fraction of the weights of the unpruned network that are zero or gone.
        adversarially_trained: Whether it was trained against attacks.
        seeds: Of its initial weights, mask and data order.
        flops: Operations of one image, two a multiply-accumulate; null where it was not measured, as the next two.
        parameters: Numbers in its weights.
        milliseconds: Time of one image on the engine that calibrated.
        clean_disagreement_rate: Clean inputs of the fitting split on which its label differs from the first answer.
        adversarial_disagreement_rate: The same of attacked inputs.
        clean_accuracy: On the validation split.
        robust_accuracy: There, under PGD.
        precision: What its convolutions compute in; the key is missing where it is float32, as in older files.
    """

    role: Role
    sees: Sees
    vote_weight: Rate
    method: str
    sparsity: Rate
    adversarially_trained: bool
    seeds: Seeds
    flops: Count | None
    parameters: Count | None
    milliseconds: Amount | None
    clean_disagreement_rate: Rate
    adversarial_disagreement_rate: Rate
    clean_accuracy: Rate
    robust_accuracy: Rate
    precision: Precision = "float32"

    @model_serializer(mode="wrap")
    def _without_float32(self, serialise: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {key: value for key, value in serialise(self).items() if key != "precision" or value != "float32"}

    @model_validator(mode="after")
    def _votes_as_its_role(self) -> "Member":
        if self.role == "sensor" and self.vote_weight:
            raise ValueError(f"a sensor has no vote, found vote_weight {self.vote_weight}")
        return self


class Provenance(ManifestTable):
    """How the file was made; `protocol` is null where nobody can evaluate it so again."""

    recipe: str
    seed: int
    data: str
    classifier: str
    versions: dict[str, str]
    git_commit: str | None
    protocol: Protocol | None = None


class Manifest(ManifestTable):
    """The whole manifest of a defended model file.

    The keys of weaknesses, of precision and of sparse weights are missing where there is none and all is float32, as in
    older files. `sparse_weights` is how many tensors are stored as values and gaps; None: none is to be. `two_four`
    names the stages whose weights are 2:4 sparse, for engines that have kernels for it.
    """

    format_version: Literal[4]
    input: InputDescription
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    members: Annotated[tuple[Member, ...], Field(min_length=1)]
    decision: DecisionDescription
    test: TestTables
    purifier: PurifierDescription
    measured: tuple[Measurement, ...]
    provenance: Provenance
    weights_sha256: Sha256
    graph_sha256: Sha256
    weaknesses: tuple[WeaknessRecord, ...] = ()
    precision: PrecisionRecord | None = None
    sparse_weights: Count | None = None
    two_four: tuple[str, ...] = ()

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialise: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {key: value for key, value in serialise(self).items() if key not in _LEFT_OUT or value}

    @model_validator(mode="after")
    def _counts_agree(self) -> "Manifest":
        if len(self.test.increments) != len(self.members):
            raise ValueError(f"the test has {len(self.test.increments)} members, the manifest {len(self.members)}")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("class names repeat")
        test, purify = self.to_test(), self.decision.purify
        if (purify == "off") != self.purifier.off:
            raise ValueError(f"decision.purify is {purify!r}, but the purifier has {self.purifier.steps} steps")
        if purify == "suspicious":
            if any(member.sees == "purified" for member in self.members[: test.opening]):
                raise ValueError("purify 'suspicious' asks the opening before anything is purified: it must see 'raw'")
            if any(signal.name == "reconstruction error" for signal in test.signals):
                raise ValueError("purify 'suspicious' leaves images without the reconstruction error that is a signal")
        return self

    def to_test(self) -> SequentialTest:
        """Return the tables of the decision as arrays, as the numpy reference takes them."""
        return self.test.to_test(
            [member.vote_weight for member in self.members],
            answer=self.decision.answer,
            jury_share=self.decision.jury_share,
            amplification=self.decision.amplification,
        )

    @property
    def has_half_weights(self) -> bool:
        """Whether weights of a stage were rounded to float16, so that the file stores them in it."""
        stages = [] if self.precision is None else [self.precision.classifier, *(one.precision for one in self.members)]
        return "float16_weights" in stages

    def to_json(self) -> str:
        """Serialise; the same manifest always gives the same text."""
        return self.model_dump_json()


def read_manifest(text: str, *, source: str) -> Manifest:
    """Parse and check a manifest.

    Args:
        text: The JSON text.
        source: Name of the file, for messages.

    Raises:
        ModelFileError: If the text is not JSON, of another version, or holds unknown or contradictory keys.
    """
    _check_version(text, source)
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "manifest"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ModelFileError(
            f"{source}: the manifest is not valid at {place}: {first['msg']}{more}; export the model again"
        ) from error


def _check_version(text: str, source: str) -> None:
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{source}: the manifest is not JSON ({error}); export the model again") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        older = type(version) is int and version < FORMAT_VERSION
        cure = "harden its recipe again" if older else "install the s2ap-defend release that wrote it"
        raise ModelFileError(
            f"{source} carries manifest version {reprlib.repr(version)}, this runtime reads {FORMAT_VERSION}; {cure}"
        )
