"""The one-call pipeline: data to a defended model file, measured under attack before it is handed over."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto
from pydantic import TypeAdapter, ValidationError
from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_defend.manifest import Manifest, Measurement
from s2ap_defend.model_file import check_writable, open_model_file, replace_file, weights_sha256, write_model_file
from s2ap_defend.progress import Reporter
from s2ap_defend.stages import CLASSIFIER, PURIFIER, member_scope
from s2ap_export.compose import compose
from s2ap_export.description import describe
from s2ap_export.parity import check_stage
from s2ap_export.precision import to_half
from s2ap_export.trace import frozen, trace_classifier, trace_purifier
from s2ap_train.calibrate import Calibration, Detection, calibrate
from s2ap_train.calibrate.stage_engines import StageEngines
from s2ap_train.data import ImageSet, Splits
from s2ap_train.evaluate import AdaptiveBudget, Evaluation, evaluate_file
from s2ap_train.fitting_attacks import attacked_fitting_images, copied_image
from s2ap_train.jobs import Workers
from s2ap_train.ladder import Ladder, measure_ladder
from s2ap_train.lock import locked_folder
from s2ap_train.models import fold_batch_norm
from s2ap_train.parts import Parts, train_parts
from s2ap_train.purifier import hadamard_bank, purify
from s2ap_train.purifier_choice import By, check_grid, choose_purifier
from s2ap_train.purifier_grid import check_banks
from s2ap_train.recipe import Recipe
from s2ap_train.threads import one_thread
from s2ap_train.workbench import fingerprint

FIGURES_VERSION = 2  # of what is measured: figures that were kept with another are measured again
ATTACKS = ("clean", "fgsm", "pgd", "unrolled-pgd", "square")
COMPARED = 8  # images on which exported stages are compared with their networks


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


def harden(
    recipe: Recipe,
    output: Path,
    work_dir: Path,
    reporter: Reporter,
    *,
    workers: Workers = None,
    choose: By | None = "recipe",
) -> Hardened:
    """Train, prune, choose the purifier, calibrate, export and measure.

    Every trained part is kept in `work_dir`; run again, finished parts are reused.

    Args:
        recipe: What to do.
        output: The model file to write; checked before anything is trained.
        work_dir: Folder of the checkpoints.
        reporter: Told about every step.
        workers: Processes that train or attack at the same time, None takes one a core; or "ray", which trains.
        choose: Who decides on the purifier: the recipe, or what the sweep finds on validation images; None: the recipe,
            without a sweep.

    Raises:
        ModelFileError: If the output cannot be written.
        RecipeError: If a part of the recipe cannot work, or another run works in `work_dir`.
    """
    check_writable(output)
    candidate = work_dir / "unmeasured" / output.name
    check_writable(candidate)
    tried = check_grid(recipe)
    splits = recipe.load_data()
    check_banks(tried, splits.image_shape)
    with locked_folder(work_dir):
        return _hardened(recipe, splits, output, candidate, work_dir, reporter, workers, choose)


def _hardened(
    recipe: Recipe,
    splits: Splits,
    output: Path,
    candidate: Path,
    work_dir: Path,
    reporter: Reporter,
    workers: Workers,
    choose: By | None,
) -> Hardened:
    """`harden` in a work folder that is its own; `candidate` is the file that is measured."""
    parts = train_parts(recipe, splits, work_dir, reporter, workers=workers)
    processes = None if workers == "ray" else workers
    purifier, choice = choose_purifier(recipe, parts, splits, work_dir, reporter, by=choose, workers=processes)
    recipe = recipe.model_copy(update={"purifier": purifier})
    with reporter.step("export", 3) as step:
        stages = _trace(recipe, parts, splits)
        step.advance("traced")
        engines = StageEngines(stages.purifier, stages.classifier, stages.members)
        milliseconds = _milliseconds(engines, stages, splits.fit, work_dir)
        calibration = _calibrate(recipe, parts, engines, milliseconds, splits)
        step.advance("calibrated")
        members = [stages.members[i] for i in calibration.order]
        model = compose(stages.purifier, stages.classifier, members, calibration.tables.to_test())
        manifest = describe(recipe, parts, calibration, milliseconds, splits, choice=choice)
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
    decides = recipe.model_copy(update={"choice": None})  # the ablations are not in the file; the chosen purifier is
    key = fingerprint((sealed.weights_sha256, sealed.graph_sha256, decides, FIGURES_VERSION))
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


def _trace(recipe: Recipe, parts: Parts, splits: Splits) -> _Stages:
    """Export every network, and compare each stage with what it was made from."""
    shape, some = splits.image_shape, splits.fit.images[:COMPARED]
    bank = hadamard_bank(recipe.purifier.bank_size, shape, recipe.purifier.bank_seed)
    score_model = frozen(parts.score_model)
    purifier = trace_purifier(score_model, bank, recipe.purifier, shape, scope=PURIFIER)
    purifier = to_half(purifier) if recipe.export.precision == "float16" else purifier
    check_stage(PURIFIER, purifier, lambda x: purify(score_model, x, bank, recipe.purifier), some)

    def classifier(module: nn.Module, scope: str) -> ModelProto:
        network = frozen(module)
        stage = trace_classifier(fold_batch_norm(network), shape, scope=scope)
        check_stage(scope, stage, lambda x: (network(x).log_softmax(dim=1),), some)
        return stage

    members = tuple(classifier(member.model, member_scope(i)) for i, member in enumerate(parts.members))
    return _Stages(purifier, classifier(parts.classifier(recipe.classifier).model, CLASSIFIER), members)


_MILLISECONDS = TypeAdapter(dict[str, float])


def _milliseconds(engines: StageEngines, stages: _Stages, data: ImageSet, work_dir: Path) -> tuple[float, ...]:
    """Time of one image in each member; measured once for the same members, so that a second run writes the same."""
    keys = [weights_sha256(member) for member in stages.members]
    kept = work_dir / "milliseconds.json"
    known: dict[str, float] = {}
    if kept.exists():
        with contextlib.suppress(ValidationError):  # measured again
            known = _MILLISECONDS.validate_json(kept.read_bytes())
    if not known.keys() >= {*keys}:
        known = dict(zip(keys, engines.milliseconds(data.images).tolist(), strict=True))
        replace_file(kept, _MILLISECONDS.dump_json(known, indent=2))
    return tuple(known[key] for key in keys)


def _calibrate(
    recipe: Recipe, parts: Parts, engines: StageEngines, milliseconds: tuple[float, ...], splits: Splits
) -> Calibration:
    """Calibrate on the answers of the exported stages, by the engine that serves them."""
    with one_thread():  # two threads in such small operators are many times slower where others compute, too
        attacked = attacked_fitting_images(
            parts.classifier(recipe.classifier).model,
            [member.model for member in parts.members],
            splits.fit,
            eps=recipe.eps,
            seed=recipe.seed,
        )
    try:
        return calibrate(
            engines.answers(splits.fit.images, splits.fit.labels),
            engines.answers(attacked.images, attacked.labels, image=copied_image(attacked, splits.fit)),
            engines.answers(splits.calibration.images, splits.calibration.labels),
            recipe.detection,
            costs=_costs(recipe.detection, parts, milliseconds),
        )
    except RecipeError as error:
        raise RecipeError(f"recipe {recipe.name}: {error}") from error


def _costs(config: Detection, parts: Parts, milliseconds: tuple[float, ...]) -> tuple[float, ...] | None:
    match config.cost:
        case "flops":
            return tuple(float(member.flops) for member in parts.members)
        case "milliseconds":
            return milliseconds
        case _:
            return None


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
