"""From trained networks to the graph and manifest of a model file: trace, compare, calibrate, compose."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto
from pydantic import TypeAdapter, ValidationError
from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_defend.files import replace_file
from s2ap_defend.manifest import ChoiceRecord, Manifest
from s2ap_defend.manifest_fields import WeakPart
from s2ap_defend.model_file import weights_sha256
from s2ap_defend.precision_record import Precision
from s2ap_defend.stages import CLASSIFIER, member_scope
from s2ap_export.graph.compose import compose
from s2ap_export.hardening.description import Precisions, describe
from s2ap_export.hardening.parity import check_stage
from s2ap_export.hardening.precision import is_half, precision_of
from s2ap_export.hardening.purifier_stage import exported_purifier
from s2ap_export.hardening.stage_precision import in_precision
from s2ap_export.hardening.unfit import check_fit
from s2ap_export.tracing.trace import frozen, trace_classifier
from s2ap_train.calibration import Calibration, Detection, Jury, OnWeakness, Weakness, calibrate, refuse
from s2ap_train.calibration.stage_engines import StageEngines
from s2ap_train.data import ImageSet, Splits
from s2ap_train.hardening.decision_choice.choice import ChosenDecision
from s2ap_train.hardening.decision_choice.wiring import wiring
from s2ap_train.hardening.fitting_attacks import attacked_for, copied_image
from s2ap_train.hardening.train import Components
from s2ap_train.models import fold_batch_norm
from s2ap_train.recipe import Recipe

COMPARED = 8  # images on which exported stages are compared with their networks


@dataclass(frozen=True)
class TracedNetworks:
    """What files of the same networks share, whatever their purifier and decision are.

    Attributes:
        classifier: Its stage.
        members: Their stages, in the order in which they were trained.
        weaknesses: Stages that are in float32 although the recipe asks for less.
    """

    classifier: ModelProto
    members: tuple[ModelProto, ...]
    weaknesses: tuple[Weakness, ...] = ()


def traced_networks(recipe: Recipe, components: Components, splits: Splits) -> TracedNetworks:
    """Export classifier and members, and compare each stage with its network.

    Raises:
        RecipeError: If an exported stage differs from its network, a network gives what is not finite, or TensorRT is
            wanted and does not take it.
    """
    shape, some, wanted = splits.image_shape, splits.fit.images[:COMPARED], recipe.export.precision
    coarse: list[Weakness] = []

    def stage(module: nn.Module, scope: str, precision: Precision, part: WeakPart) -> ModelProto:
        network = frozen(module)

        def checked(traced: ModelProto) -> ModelProto:
            check_stage(scope, traced, lambda x: (network(x).log_softmax(dim=1),), some)
            return traced

        single = checked(trace_classifier(fold_batch_norm(network), shape, scope=scope))
        check_fit(single, wanted=recipe.export.tensorrt)
        if precision not in {"float32", precision_of(single)}:
            try:
                reduced = in_precision(single, precision, splits.fit.images, tensorrt=recipe.export.tensorrt)
                return checked(reduced)
            except RecipeError as error:
                coarse.append(Weakness.of(error, part, f"{scope} is in float32"))
        return single

    members = tuple(
        stage(member.model, member_scope(i), wanted.members, "members") for i, member in enumerate(components.members)
    )
    classifier = stage(components.classifier(recipe.classifier).model, CLASSIFIER, wanted.classifier, "answer")
    return TracedNetworks(classifier, members, tuple(coarse))


def assemble(
    recipe: Recipe,
    components: Components,
    splits: Splits,
    work_dir: Path,
    *,
    networks: TracedNetworks | None = None,
    fitting: ImageSet | None = None,
    choice: ChoiceRecord | None = None,
    decision: ChosenDecision | None = None,
    on_stage: Callable[[str], None] | None = None,
    strict: bool = True,
) -> tuple[ModelProto, Manifest]:
    """The graph of a defended model and its manifest, in which no accuracy was measured yet.

    Args:
        recipe: What it is made by; its purifier is the one that is exported.
        components: The trained networks.
        splits: Data for calibration.
        work_dir: Where the members' times are kept, so that a second run writes the same manifest.
        networks: The same networks, traced; None: they are traced here.
        fitting: What `attacked_for` gives; None: that of `decision`, or made here.
        choice: How the purifier was chosen, for the manifest.
        decision: How the recipe's decision was chosen, for the manifest; None: it was not compared with others.
        on_stage: Called with what is done.
        strict: Whether what cannot be as the recipe says is refused; otherwise the manifest says what is weak.

    Raises:
        RecipeError: If something is refused, or an exported stage differs from its network.
    """
    weaknesses = [] if decision is None else [*decision.weaknesses]
    weak = refuse if strict else weaknesses.append
    tell = on_stage or (lambda _: None)
    ready = traced_networks(recipe, components, splits) if networks is None else networks
    for weakness in ready.weaknesses:
        weak(weakness)
    if fitting is None:
        fitting = attacked_for(recipe, components, splits) if decision is None else decision.fitting
    purifier = exported_purifier(recipe, components.score_model, splits.fit.images[:COMPARED], weak)
    tell("traced")
    sees, jury = wiring(recipe.decision, components.roles)
    engines = StageEngines(purifier, ready.classifier, ready.members, sees=sees, purify=recipe.decision.purify)
    milliseconds = _milliseconds(engines, ready, splits.fit, work_dir)
    calibration = _calibrated(recipe, components, engines, milliseconds, splits, fitting, jury, weak)
    tell("calibrated")
    order = calibration.order.tolist()
    model = compose(
        purifier,
        ready.classifier,
        [ready.members[i] for i in order],
        calibration.test,
        sees=[sees[i] for i in order],
        purify=recipe.decision.purify,
    )
    return model, describe(
        recipe,
        components,
        calibration,
        sees,
        milliseconds,
        splits,
        precisions=Precisions(
            "float16" if is_half(purifier) else "float32",
            precision_of(ready.classifier),
            tuple(map(precision_of, ready.members)),
        ),
        weaknesses=weaknesses,
        choice=choice,
        frontier=None if decision is None else decision.frontier,
    )


_MILLISECONDS = TypeAdapter(dict[str, float])


def _milliseconds(engines: StageEngines, ready: TracedNetworks, data: ImageSet, work_dir: Path) -> tuple[float, ...]:
    """Time of one image in each member; measured once for the same members, so that a second run writes the same."""
    keys = [weights_sha256(member) for member in ready.members]
    kept = work_dir / "milliseconds.json"
    known: dict[str, float] = {}
    if kept.exists():
        with contextlib.suppress(ValidationError):  # measured again
            known = _MILLISECONDS.validate_json(kept.read_bytes())
    if not known.keys() >= {*keys}:
        known = dict(zip(keys, engines.milliseconds(data.images).tolist(), strict=True))
        replace_file(kept, _MILLISECONDS.dump_json(known, indent=2))
    return tuple(known[key] for key in keys)


def _calibrated(
    recipe: Recipe,
    components: Components,
    engines: StageEngines,
    milliseconds: tuple[float, ...],
    splits: Splits,
    attacked: ImageSet,
    jury: Jury,
    weak: OnWeakness,
) -> Calibration:
    """The test behind a jury, calibrated on the answers of the exported stages, by the engine that serves them."""
    fit, held_out = splits.fit, splits.calibration
    try:
        return calibrate(
            engines.answers(fit.images, fit.labels),
            engines.answers(attacked.images, attacked.labels, image=copied_image(attacked, fit)),
            engines.answers(held_out.images, held_out.labels),
            recipe.detection,
            jury,
            costs=_costs(recipe.detection, components, milliseconds),
            weak=weak,
        )
    except RecipeError as error:
        raise RecipeError(f"recipe {recipe.name}: {error}") from error


def _costs(config: Detection, components: Components, milliseconds: tuple[float, ...]) -> tuple[float, ...] | None:
    match config.cost:
        case "flops":
            return tuple(float(member.flops) for member in components.members)
        case "milliseconds":
            return milliseconds
        case _:
            return None
