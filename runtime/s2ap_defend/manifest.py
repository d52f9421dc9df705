"""The manifest: everything a reader must know of a defended model file beside its graph.

It is JSON under metadata_props["s2ap_defend"], data only: no Python name, path or URL. docs/model-file.md is the
normative description. Unknown keys, another version and contradictory numbers are refused.
"""

import json
import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from s2ap_defend.errors import ModelFileError
from s2ap_defend.sequential import SequentialTest

METADATA_KEY = "s2ap_defend"
FORMAT_VERSION: Literal[1] = 1

Rate = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class InputDescription(_Part):
    """The tensor `image`: float32 [N, channels, height, width] in [0, 1]."""

    channels: Positive
    height: Positive
    width: Positive

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width


class Member(_Part):
    """One pruned member, in the order in which members are asked.

    Disagreement rates are the measured probabilities that its label differs from the classifier's on clean and on
    attacked inputs of the fitting split.
    """

    method: str
    sparsity: Rate
    adversarially_trained: bool
    seed: int
    clean_disagreement_rate: Rate
    adversarial_disagreement_rate: Rate
    clean_accuracy: Rate
    robust_accuracy: Rate


class TestTables(_Part):
    """Numbers of the sequential test; `null` in a boundary means that it is never crossed."""

    __test__ = False  # not a pytest class

    kind: str
    evidence: Literal["margin", "surprise"]
    edges: tuple[tuple[float, ...], ...]
    increments: tuple[tuple[float, ...], ...]
    lower: tuple[float | None, ...]
    upper: tuple[float | None, ...]
    truncation: Literal["clean", "adversarial", "sign"]
    vote_members: Annotated[int, Field(ge=0)]
    base_vote_weight: Rate
    waves: tuple[Positive, ...]
    alpha: Rate
    beta: Rate
    calibration_samples: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _describes_a_test(self) -> "TestTables":
        self.to_test()
        return self

    def to_test(self) -> SequentialTest:
        """Return the tables as arrays, as the numpy reference takes them."""
        thresholds = {"clean": math.inf, "adversarial": -math.inf, "sign": 0.0}
        return SequentialTest(
            evidence=self.evidence,
            edges=np.array(self.edges, dtype=np.float32),
            increments=np.array(self.increments, dtype=np.float64),
            lower=np.array([-math.inf if value is None else value for value in self.lower]),
            upper=np.array([math.inf if value is None else value for value in self.upper]),
            final_threshold=thresholds[self.truncation],
            vote_members=self.vote_members,
            base_vote_weight=self.base_vote_weight,
            waves=self.waves,
        )


class PurifierDescription(_Part):
    """Settings of the purifier that is inside the graph; lengths in [0, 1] pixels."""

    mode: Literal["full", "j_free"]
    norm: Literal["linf", "l2"]
    sigma: Annotated[float, Field(gt=0)]
    radius: Annotated[float, Field(ge=0)]
    steps: Positive
    step_size: Annotated[float, Field(gt=0)]
    rho: Annotated[float, Field(ge=0)]
    reuse_ascent: bool
    bank_size: Positive
    bank_seed: int
    bank_sha256: Sha256


class Measurement(_Part):
    """Accuracy under one attack, measured on `samples` test images when the file was made."""

    attack: str
    eps: Annotated[float, Field(ge=0)]
    samples: Positive
    bare_accuracy: Rate
    robust_accuracy: Rate
    flagged: Rate
    members_used: Annotated[float, Field(ge=0)]


class Provenance(_Part):
    """How the file was made."""

    recipe: str
    seed: int
    data: str
    classifier: str
    versions: dict[str, str]
    git_commit: str | None


class Manifest(_Part):
    """The whole manifest of a defended model file."""

    format_version: Literal[1]
    input: InputDescription
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    members: Annotated[tuple[Member, ...], Field(min_length=1)]
    test: TestTables
    purifier: PurifierDescription
    measured: tuple[Measurement, ...]
    provenance: Provenance
    weights_sha256: Sha256
    graph_sha256: Sha256

    @model_validator(mode="after")
    def _counts_agree(self) -> "Manifest":
        if len(self.test.increments) != len(self.members):
            raise ValueError(f"the test has {len(self.test.increments)} members, the manifest {len(self.members)}")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("class names repeat")
        return self

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
    try:
        data: Any = json.loads(text)
    except ValueError as error:
        raise ModelFileError(f"{source}: the manifest is not JSON ({error}); export the model again") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise ModelFileError(
            f"{source} carries manifest version {version!r}, this runtime reads {FORMAT_VERSION}; "
            "install the s2ap-defend release that wrote it or export it again"
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "manifest"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ModelFileError(
            f"{source}: the manifest is not valid at {place}: {first['msg']}{more}; export the model again"
        ) from error
