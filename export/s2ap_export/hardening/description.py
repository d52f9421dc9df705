"""The manifest of a hardened model: what its networks, its calibration and its purifier were."""

import hashlib
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from s2ap_defend.decision_record import Role, Sees
from s2ap_defend.manifest import (
    FORMAT_VERSION,
    ChoiceRecord,
    DecisionDescription,
    Frontier,
    InputDescription,
    Manifest,
    Member,
    Protocol,
    Provenance,
    PurifierDescription,
    WeaknessRecord,
)
from s2ap_defend.precision_record import Precision, PrecisionRecord, PurifierPrecision
from s2ap_train.calibration import Calibration, Weakness
from s2ap_train.data import Splits
from s2ap_train.hardening.network import Network
from s2ap_train.hardening.train import Components
from s2ap_train.purifier import Purification, hadamard_bank
from s2ap_train.recipe import Recipe
from s2ap_train.recipe.purifier_grid import settings_of

__all__ = ["Precisions", "describe"]

UNSEALED = "0" * 64
LIBRARIES = ("s2ap-defend", "torch", "onnx", "numpy")


@dataclass(frozen=True)
class Precisions:
    """What the convolutions of each stage compute in, members in the order in which they were trained."""

    purifier: PurifierPrecision
    classifier: Precision
    members: tuple[Precision, ...]

    @property
    def reduced(self) -> bool:
        """Whether anything computes in less than float32."""
        return {self.purifier, self.classifier, *self.members} != {"float32"}


def describe(
    recipe: Recipe,
    components: Components,
    calibration: Calibration,
    sees: Sequence[Sees],
    milliseconds: tuple[float, ...],
    splits: Splits,
    *,
    precisions: Precisions,
    weaknesses: Sequence[Weakness] = (),
    choice: ChoiceRecord | None = None,
    frontier: Frontier | None = None,
) -> Manifest:
    """The manifest before anything is measured and before the file is sealed.

    Args:
        recipe: What was made.
        components: Its networks, members in the order in which they were trained.
        calibration: Order, tables and rates of the members.
        sees: What each member sees, in the order in which they were trained.
        milliseconds: Time of one image in each member, in the order in which they were trained.
        splits: The data.
        precisions: Of the stages.
        weaknesses: Of the file.
        choice: How the recipe's purifier was chosen; None: it was not measured.
        frontier: What other decisions keep and cost; None: they were not compared.
    """
    channels, height, width = splits.image_shape
    return Manifest(
        format_version=FORMAT_VERSION,
        input=InputDescription(channels=channels, height=height, width=width, resize=splits.resize),
        classes=splits.classes,
        members=tuple(
            _member(
                components.members[i], components.roles[i], sees[i], milliseconds[i], calibration, place
            ).model_copy(update={"precision": precisions.members[i]})
            for place, i in enumerate(calibration.order.tolist())
        ),
        decision=DecisionDescription(
            answer=recipe.decision.answer,
            jury_share=recipe.decision.jury_share,
            amplification=recipe.decision.amplification,
            purify="off" if recipe.purifier.off else recipe.decision.purify,
            frontier=frontier,
        ),
        test=calibration.tables,
        purifier=_purifier(recipe.purifier, splits.image_shape, precisions.purifier, choice),
        measured=(),
        provenance=Provenance(
            recipe=recipe.name,
            seed=recipe.seed,
            data=splits.name,
            classifier=recipe.classifier,
            versions={name: version(name) for name in LIBRARIES},
            git_commit=_git_commit(),
            protocol=_protocol(recipe, splits),
        ),
        weights_sha256=UNSEALED,
        graph_sha256=UNSEALED,
        weaknesses=tuple(WeaknessRecord(part=one.part, text=one.in_words) for one in weaknesses),
        precision=PrecisionRecord(classifier=precisions.classifier, comparison=None) if precisions.reduced else None,
        sparse_weights=0 if recipe.export.sparse_weights == "auto" else None,
    )


def _protocol(recipe: Recipe, splits: Splits) -> Protocol:
    own = recipe.evaluation
    return Protocol(
        split=recipe.data.model_dump(mode="json", exclude={"root"}, exclude_defaults=True),
        test_sha256=splits.sha256("test"),
        eps=recipe.eps,
        l2=own.l2,
        pixels=own.pixels,
        samples=own.samples,
        budget=own.budget,
    )


def _member(
    member: Network, role: Role, sees: Sees, milliseconds: float, calibration: Calibration, place: int
) -> Member:
    return Member(
        role=role,
        sees=sees,
        vote_weight=float(calibration.test.vote_weights[place]),
        method=member.method,
        sparsity=member.sparsity,
        adversarially_trained=member.adversarially_trained,
        seeds=member.seeds,
        flops=member.flops,
        parameters=member.parameters,
        milliseconds=milliseconds,
        clean_disagreement_rate=float(calibration.clean_disagreement_rates[place]),
        adversarial_disagreement_rate=float(calibration.adversarial_disagreement_rates[place]),
        clean_accuracy=member.clean_accuracy,
        robust_accuracy=member.robust_accuracy,
    )


def _purifier(
    config: Purification,
    shape: tuple[int, int, int],
    precision: PurifierPrecision,
    choice: ChoiceRecord | None,
) -> PurifierDescription:
    bank = hadamard_bank(config.bank_size, shape, config.bank_seed).numpy()
    return PurifierDescription(
        **settings_of(config).model_dump(),
        bank_sha256=hashlib.sha256(bank.tobytes()).hexdigest(),
        precision=precision,
        choice=choice,
    )


def _git_commit() -> str | None:
    """The commit of the source tree that tracks this file; None for an installed wheel, inside a repository or not."""
    here = Path(__file__)
    commit = _git(here.parent, "rev-parse", "HEAD")
    return commit if commit and _git(here.parent, "ls-files", here.name) else None


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
