"""The one-call pipeline: data to a defended model file, measured under attack before it is handed over."""

import hashlib
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from onnx import ModelProto
from pydantic import TypeAdapter, ValidationError

from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.errors import RecipeError
from s2ap_defend.manifest import (
    FORMAT_VERSION,
    InputDescription,
    Manifest,
    Measurement,
    Member,
    Provenance,
    PurifierDescription,
)
from s2ap_defend.model_file import check_writable, open_model_file, replace_file, write_model_file
from s2ap_defend.progress import Reporter
from s2ap_defend.stages import CLASSIFIER, PURIFIER, member_scope
from s2ap_export.compose import compose
from s2ap_export.trace import trace_classifier, trace_purifier
from s2ap_train.calibrate import Answers, Calibration, calibrate
from s2ap_train.data import ImageSet, Splits
from s2ap_train.evaluate import AdaptiveBudget, Evaluation, evaluate_file
from s2ap_train.fitting_attacks import attacked_fitting_images
from s2ap_train.ladder import Ladder, measure_ladder
from s2ap_train.models import fold_batch_norm
from s2ap_train.parts import Parts, train_parts
from s2ap_train.purifier import Purification, hadamard_bank
from s2ap_train.recipe import Recipe
from s2ap_train.workbench import fingerprint
from s2ap_train.workshop import Network

UNSEALED = "0" * 64
ATTACKS = ("clean", "fgsm", "pgd", "unrolled-pgd", "square")
LIBRARIES = ("s2ap-defend", "torch", "onnx", "numpy")


@dataclass(frozen=True)
class Hardened:
    """What `harden` made.

    Attributes:
        path: The model file.
        manifest: Its manifest.
        evaluation: The attacks on the file.
        ladder: The same networks with less and less defence.
    """

    path: Path
    manifest: Manifest
    evaluation: Evaluation
    ladder: Ladder


def harden(recipe: Recipe, output: Path, work_dir: Path, reporter: Reporter, *, workers: int | None = None) -> Hardened:
    """Train, prune, calibrate, export and measure.

    Every trained part is kept in `work_dir`; run again, finished parts are reused.

    Args:
        recipe: What to do.
        output: The model file to write; checked before anything is trained.
        work_dir: Folder of the checkpoints.
        reporter: Told about every step.
        workers: Processes that train at the same time; None takes one a core.

    Raises:
        ModelFileError: If the output cannot be written.
        RecipeError: If a part of the recipe cannot work.
    """
    check_writable(output)
    candidate = work_dir / "unmeasured" / output.name
    check_writable(candidate)
    splits = recipe.load_data()
    parts = train_parts(recipe, splits, work_dir, reporter, workers=workers)
    with reporter.step("export", 3) as step:
        stages = _trace(recipe, parts, splits.image_shape)
        step.advance("traced")
        calibration = _calibrate(recipe, parts, stages, splits)
        step.advance("calibrated")
        members = [stages.members[i] for i in calibration.order]
        model = compose(stages.purifier, stages.classifier, members, calibration.tables.to_test())
        manifest = _manifest(recipe, parts, calibration, splits)
        write_model_file(model, manifest, candidate)
        step.advance(f"{len(members)} members, {candidate.stat().st_size / 1e6:.1f} MB")
    data = splits.test.subset(slice(0, recipe.evaluation.samples))
    figures = _measure(recipe, parts, candidate, data, work_dir, reporter)
    measured = manifest.model_copy(update={"measured": _measurements(figures.evaluation)})
    write_model_file(model, measured, output)
    return Hardened(output, measured, figures.evaluation, figures.ladder)


@dataclass(frozen=True)
class _Figures:
    """What was measured, and of what."""

    key: str
    evaluation: Evaluation
    ladder: Ladder


_FIGURES = TypeAdapter(_Figures)


def _measure(recipe: Recipe, parts: Parts, file: Path, data: ImageSet, work_dir: Path, reporter: Reporter) -> _Figures:
    """Attack the file and its ablations; figures of the same file and the same recipe are reused."""
    sealed = open_model_file(file).manifest
    key = fingerprint((sealed.weights_sha256, sealed.graph_sha256, recipe))  # the ablations are not in the file
    kept = work_dir / "figures.json"
    if kept.exists():
        try:
            figures = _FIGURES.validate_json(kept.read_bytes())
        except ValidationError:
            reporter.line(f"{kept.name}: measured again, it cannot be read")
        else:
            if figures.key == key:
                reporter.line("attacks, ablation: reused")
                return figures
    evaluation = _evaluate(recipe, file, data, reporter)
    figures = _Figures(key, evaluation, measure_ladder(recipe, parts, file, data, evaluation, reporter))
    replace_file(kept, _FIGURES.dump_json(figures, indent=2))
    return figures


@dataclass(frozen=True)
class _Stages:
    """Stand-alone ONNX models; members in the order in which they were trained."""

    purifier: ModelProto
    classifier: ModelProto
    members: tuple[ModelProto, ...]


def _trace(recipe: Recipe, parts: Parts, shape: tuple[int, int, int]) -> _Stages:
    bank = hadamard_bank(recipe.purifier.bank_size, shape, recipe.purifier.bank_seed)
    classifier = fold_batch_norm(parts.classifier(recipe.classifier).model)
    return _Stages(
        purifier=trace_purifier(parts.score_model, bank, recipe.purifier, shape, scope=PURIFIER),
        classifier=trace_classifier(classifier, shape, scope=CLASSIFIER),
        members=tuple(
            trace_classifier(fold_batch_norm(member.model), shape, scope=member_scope(i))
            for i, member in enumerate(parts.members)
        ),
    )


def _calibrate(recipe: Recipe, parts: Parts, stages: _Stages, splits: Splits) -> Calibration:
    """Calibrate on the answers of the exported stages, by the engine that serves them."""
    engines = _Engines(stages)
    attacked = attacked_fitting_images(
        parts.classifier(recipe.classifier).model,
        [member.model for member in parts.members],
        splits.fit,
        eps=recipe.eps,
        seed=recipe.seed,
    )
    try:
        return calibrate(
            engines.answers(splits.fit),
            engines.answers(attacked),
            engines.answers(splits.calibration),
            recipe.detection,
        )
    except ValueError as error:
        raise RecipeError(f"recipe {recipe.name}: {error}") from error


class _Engines:
    def __init__(self, stages: _Stages) -> None:
        self._purifier = OnnxRuntimeEngine(stages.purifier.SerializeToString(), device="cpu")
        self._classifier = OnnxRuntimeEngine(stages.classifier.SerializeToString(), device="cpu")
        self._members = [OnnxRuntimeEngine(member.SerializeToString(), device="cpu") for member in stages.members]

    def answers(self, data: ImageSet) -> Answers:
        """What classifier and members say of purified images."""
        (purified,) = self._purifier.run({"image": data.images}, ["purified"])
        (log_probabilities,) = self._classifier.run({"image": purified}, ["log_probabilities"])
        asked = [engine.run({"image": purified}, ["log_probabilities"])[0] for engine in self._members]
        return Answers(np.stack(asked), log_probabilities.argmax(axis=1), data.labels)


def _manifest(recipe: Recipe, parts: Parts, calibration: Calibration, splits: Splits) -> Manifest:
    channels, height, width = splits.image_shape
    return Manifest(
        format_version=FORMAT_VERSION,
        input=InputDescription(channels=channels, height=height, width=width),
        classes=splits.classes,
        members=tuple(
            _member(parts.members[i], calibration, place) for place, i in enumerate(calibration.order.tolist())
        ),
        test=calibration.tables,
        purifier=_purifier(recipe.purifier, splits.image_shape),
        measured=(),
        provenance=Provenance(
            recipe=recipe.name,
            seed=recipe.seed,
            data=splits.name,
            classifier=recipe.classifier,
            versions={name: version(name) for name in LIBRARIES},
            git_commit=_git_commit(),
        ),
        weights_sha256=UNSEALED,
        graph_sha256=UNSEALED,
    )


def _member(member: Network, calibration: Calibration, place: int) -> Member:
    return Member(
        method=member.method,
        sparsity=member.sparsity,
        adversarially_trained=member.adversarially_trained,
        seed=member.seed,
        clean_disagreement_rate=float(calibration.clean_disagreement_rates[place]),
        adversarial_disagreement_rate=float(calibration.adversarial_disagreement_rates[place]),
        clean_accuracy=member.clean_accuracy,
        robust_accuracy=member.robust_accuracy,
    )


def _purifier(config: Purification, shape: tuple[int, int, int]) -> PurifierDescription:
    bank = hadamard_bank(config.bank_size, shape, config.bank_seed).numpy()
    return PurifierDescription(**asdict(config), bank_sha256=hashlib.sha256(bank.tobytes()).hexdigest())


def _evaluate(recipe: Recipe, file: Path, data: ImageSet, reporter: Reporter) -> Evaluation:
    budget = AdaptiveBudget.named(recipe.evaluation.budget)
    with reporter.step("attacks", 1) as step:
        return evaluate_file(
            file,
            data,
            attacks=ATTACKS,
            eps=recipe.eps,
            seed=recipe.seed,
            budget=budget,
            on_progress=lambda name, done, total: step.advance(f"{name} {done}/{total}", done=0),
        )


def _measurements(evaluation: Evaluation) -> tuple[Measurement, ...]:
    defended, bare = evaluation.defended, evaluation.bare
    rows = [
        Measurement(
            attack="clean",
            eps=0.0,
            samples=evaluation.samples,
            bare_accuracy=bare.clean.accuracy,
            robust_accuracy=1.0 - defended.clean.attack_success,
            flagged=defended.clean.flagged,
            members_used=defended.clean.members_used,
        )
    ]
    rows += [
        Measurement(
            attack=name,
            eps=evaluation.eps,
            samples=evaluation.samples,
            bare_accuracy=1.0 - bare.attacks[name].attack_success,
            robust_accuracy=1.0 - figures.attack_success,
            flagged=figures.flagged,
            members_used=figures.members_used,
        )
        for name, figures in defended.attacks.items()
    ]
    return tuple(rows)


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
