"""A real defended model file, small and untrained, for every test that needs one."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from s2ap_defend.manifest import (
    InputDescription,
    Manifest,
    Member,
    Provenance,
    PurifierDescription,
    TestTables,
)
from s2ap_defend.model_file import write_model_file
from s2ap_defend.stages import CLASSIFIER, PURIFIER, member_scope
from s2ap_export.compose import compose
from s2ap_export.trace import trace_classifier, trace_purifier
from s2ap_train.models import SmallCNN, fold_batch_norm
from s2ap_train.purifier import Purification, UNet, hadamard_bank

SHAPE = (1, 8, 8)
MEMBERS = 6
WAVES = (2, 3, 1)


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A defended file for 1x8x8 images and ten classes: untrained networks, and tables under which images are decided
    after different numbers of members, some flagged and some not."""
    torch.set_num_threads(1)
    purification = Purification(sigma=0.3, radius=0.1, steps=1, rho=0.2, bank_size=2)
    bank = hadamard_bank(purification.bank_size, SHAPE, purification.bank_seed)
    stages = [
        trace_classifier(fold_batch_norm(SmallCNN(1, 10, (4, 6, 6, 8), 8, seed=seed).eval()), SHAPE, scope)
        for seed, scope in enumerate([CLASSIFIER, *map(member_scope, range(MEMBERS))])
    ]
    tables = TestTables(
        kind="hand-made",
        evidence="surprise",
        edges=((2.1, 2.7),) * MEMBERS,
        increments=((-1.0, -0.25, 1.0),) * MEMBERS,
        lower=(None, *(-2.0,) * (MEMBERS - 1)),
        upper=(2.5,) * MEMBERS,
        truncation="sign",
        vote_members=4,
        base_vote_weight=0.5,
        waves=WAVES,
        alpha=0.05,
        beta=0.05,
        calibration_samples=0,
    )
    purifier = trace_purifier(UNet(1, 8, (1, 2), seed=0), bank, purification, SHAPE, PURIFIER)
    model = compose(purifier, stages[0], stages[1:], tables.to_test())
    member = Member(
        method="untrained",
        sparsity=0.0,
        adversarially_trained=False,
        seed=0,
        clean_disagreement_rate=0.5,
        adversarial_disagreement_rate=0.5,
        clean_accuracy=0.1,
        robust_accuracy=0.1,
    )
    manifest = Manifest(
        format_version=1,
        input=InputDescription(channels=1, height=8, width=8),
        classes=tuple("0123456789"),
        members=(member,) * MEMBERS,
        test=tables,
        purifier=PurifierDescription(
            mode=purification.mode,
            norm=purification.norm,
            sigma=purification.sigma,
            radius=purification.radius,
            steps=purification.steps,
            step_size=purification.step_size,
            rho=purification.rho,
            reuse_ascent=purification.reuse_ascent,
            bank_size=purification.bank_size,
            bank_seed=purification.bank_seed,
            bank_sha256=hashlib.sha256(bank.numpy().tobytes()).hexdigest(),
        ),
        measured=(),
        provenance=Provenance(recipe="tiny", seed=0, data="none", classifier="untrained", versions={}, git_commit=None),
        weights_sha256="0" * 64,
        graph_sha256="0" * 64,
    )
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    write_model_file(model, manifest, path)
    return path


@pytest.fixture(scope="session")
def random_images() -> np.ndarray:
    """256 images [256, 1, 8, 8] of uniform noise."""
    return np.random.default_rng(0).random((256, *SHAPE), dtype=np.float32)
