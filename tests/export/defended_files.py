"""Real defended model files, small and untrained, as today's exporter writes them."""

import hashlib
from functools import cache
from pathlib import Path

import pytest
import torch
from onnx import ModelProto

from s2ap_defend.decision_record import Sees
from s2ap_defend.manifest import (
    CalibrationRecord,
    DecisionDescription,
    InputDescription,
    Manifest,
    Member,
    Provenance,
    PurifierDescription,
    Seeds,
    SignalTable,
    TestTables,
)
from s2ap_defend.model_file import write_model_file
from s2ap_defend.stages import CLASSIFIER, PURIFIER, member_scope
from s2ap_export.graph.compose import compose
from s2ap_export.tracing.trace import trace_classifier, trace_purifier
from s2ap_train.models import SmallCNN, fold_batch_norm
from s2ap_train.purifier import Purification, UNet, hadamard_bank

SHAPE = (1, 8, 8)
MEMBERS = 6
WAVES = (2, 3, 1)
PURIFICATION = Purification(sigma=(0.3,), radius=0.1, steps=1, rho=0.2, bank_size=2)
TABLES = TestTables(
    kind="hand-made",
    evidence="surprise",
    edges=((2.13, 2.68), (2.3, 2.87), (2.0, 3.1), (2.0, 2.5), (2.27, 2.45), (2.3, 2.6)),  # about the median scores
    increments=((-1.0, -0.25, 1.0),) * MEMBERS,
    lower=(None, *(-1.25,) * (MEMBERS - 1)),
    upper=(1.0,) * MEMBERS,
    truncation="sign",
    correction="correct",
    curtailed=True,
    opening=1,
    await_vote=False,
    signals=(SignalTable(name="jury margin", edges=(-0.01,), increments=(-0.25, 0.25)),),
    waves=WAVES,
    alpha=0.05,
    beta=0.05,
    calibration=CalibrationRecord(
        on="correct",
        samples=0,
        expected_false_alarm_rate=None,
        false_alarm_bound=None,
        correlation=None,
        effective_members=None,
        reference_ratios=(),
    ),
)
ABSTAINING_TABLES = TABLES.model_copy(
    update={
        "correction": "reject",
        "truncation": "abstain",
        "lower": (-1.25,) * MEMBERS,
        "edges": ((1.6, 1.75), *TABLES.edges[1:]),  # the first juror's own answer surprises it less
    }
)
KEEPING_TABLES = TABLES.model_copy(update={"correction": "keep"})
VOTE_WEIGHTS = (1.0, 0.5, 0.0, 0.75, 0.0, 0.0)
SEES: tuple[Sees, ...] = ("raw", "raw", "purified", "raw", "purified", "purified")
DECISION = DecisionDescription(answer="mixed", jury_share=0.75, amplification=2.0, purify="always", frontier=None)
ABSTAINING_DECISION = DECISION.model_copy(update={"answer": "robust", "purify": "suspicious"})


@pytest.fixture(scope="session")
def tiny_stages() -> tuple[ModelProto, ModelProto, list[ModelProto]]:
    """Purifier, classifier and members for 1x8x8 images and ten classes: untrained networks."""
    return stages_of(PURIFICATION)


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A defended file with tables under which images are decided after different numbers of members, some flagged and
    corrected, some not."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    write_untrained(path, TABLES, DECISION, PURIFICATION)
    return path


@pytest.fixture(scope="session")
def abstaining_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same networks where the jury answers, what is flagged is rejected, what is undecided abstains, and only what
    is suspicious is purified."""
    path = tmp_path_factory.mktemp("abstaining") / "abstaining.onnx"
    write_untrained(path, ABSTAINING_TABLES, ABSTAINING_DECISION, PURIFICATION)
    return path


@cache  # the tests of train and of export have these fixtures each
def stages_of(
    purification: Purification, classes: int = 10, shape: tuple[int, int, int] = SHAPE, fold: int = 1
) -> tuple[ModelProto, ModelProto, list[ModelProto]]:
    """Untrained networks for images (C, H, W): this purifier, the classifier and its members."""
    torch.set_num_threads(1)
    bank = hadamard_bank(purification.bank_size, shape, purification.bank_seed)
    purifier = trace_purifier(UNet(shape[0], 8, (1, 2), fold, seed=0), bank, purification, shape, PURIFIER)
    classifier, *members = (
        trace_classifier(
            fold_batch_norm(SmallCNN(shape[0], classes, (4, 6, 6, 8), shape[1:], seed=seed).eval()), shape, scope
        )
        for seed, scope in enumerate([CLASSIFIER, *map(member_scope, range(MEMBERS))])
    )
    return purifier, classifier, members


def write_untrained(
    path: Path,
    tables: TestTables,
    decision: DecisionDescription,
    purification: Purification,
    *,
    classes: int = 10,
    shape: tuple[int, int, int] = SHAPE,
    fold: int = 1,
    classifier: ModelProto | None = None,
) -> None:
    """Write them with this decision as one defended file; `classifier` in the place of theirs, if one is given."""
    bank = hadamard_bank(purification.bank_size, shape, purification.bank_seed)
    members = tuple(
        Member(
            role="juror" if weight else "sensor",
            sees=sees,
            vote_weight=weight,
            method="untrained",
            sparsity=0.0,
            adversarially_trained=False,
            seeds=Seeds(initialisation=0, mask=1, order=2),
            flops=12_345,
            parameters=678,
            milliseconds=None,
            clean_disagreement_rate=0.5,
            adversarial_disagreement_rate=0.5,
            clean_accuracy=0.1,
            robust_accuracy=0.1,
        )
        for sees, weight in zip(SEES, VOTE_WEIGHTS, strict=True)
    )
    manifest = Manifest(
        format_version=4,
        input=InputDescription(channels=shape[0], height=shape[1], width=shape[2]),
        classes=tuple(map(str, range(classes))),
        members=members,
        decision=decision,
        test=tables,
        purifier=PurifierDescription(
            mode=purification.mode,
            norm=purification.norm,
            sigmas=purification.sigmas,
            radius=purification.radius,
            steps=purification.steps,
            step_size=purification.step_size,
            rho=purification.rho,
            reuse_ascent=purification.reuse_ascent,
            bank_size=purification.bank_size,
            bank_seed=purification.bank_seed,
            bank_sha256=hashlib.sha256(bank.numpy().tobytes()).hexdigest(),
            precision="float32",
            choice=None,
        ),
        measured=(),
        provenance=Provenance(recipe="tiny", seed=0, data="none", classifier="untrained", versions={}, git_commit=None),
        weights_sha256="0" * 64,
        graph_sha256="0" * 64,
    )
    purifier, own, networks = stages_of(purification, classes, shape, fold)
    answering = own if classifier is None else classifier
    model = compose(purifier, answering, networks, manifest.to_test(), sees=SEES, purify=decision.purify)
    write_model_file(model, manifest, path)
