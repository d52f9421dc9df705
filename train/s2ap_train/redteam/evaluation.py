"""The evaluation that counts: every attack on the served file, and everything that is reported of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from s2ap_defend.model_file import ModelFile
from s2ap_defend.progress import Reporter, duration
from s2ap_train.compute.threads import one_thread
from s2ap_train.data import ImageSet
from s2ap_train.jobs import SECONDS, Workers, check_workers, run_resumable
from s2ap_train.redteam.ablation.compute import file_flops
from s2ap_train.redteam.ablation.costs import comparisons, part_costs
from s2ap_train.redteam.ablation.measured import MeasuredRow
from s2ap_train.redteam.ablation.must_hold import must_hold
from s2ap_train.redteam.ablation.names import BARE, FULL
from s2ap_train.redteam.ablation.networks import Networks
from s2ap_train.redteam.ablation.run import AblationRun, run_ablation
from s2ap_train.redteam.attacks.attack import RedTeamAttack
from s2ap_train.redteam.checks.run import judge_checks
from s2ap_train.redteam.configuration import configuration_of
from s2ap_train.redteam.coverage import unfinished
from s2ap_train.redteam.detection import measure_detection
from s2ap_train.redteam.forecast import what_is_left
from s2ap_train.redteam.gallery import gallery_of_file
from s2ap_train.redteam.judging import Judged, attack_rows, in_the_ball, judged, worst_of
from s2ap_train.redteam.plan import Plan, deadline
from s2ap_train.redteam.preparation import prepare
from s2ap_train.redteam.results import DetectionFigures, Evaluation
from s2ap_train.redteam.target import open_targets, opened
from s2ap_train.statistics.figures import WorstCase, clean_figures
from s2ap_train.statistics.outcome import Outcome

__all__ = ["FOLDER", "evaluate_file"]

FOLDER = "evaluation"
"""Where, in a work folder, finished attacks are stored."""
_FOR_ATTACKS = 0.6  # of a time limit; the rest is for the search and for checks and curves


def evaluate_file(
    path: Path,
    data: ImageSet,
    plan: Plan,
    *,
    folder: Path | None,
    reporter: Reporter,
    workers: Workers = None,
    networks: Networks | None = None,
    ablation: bool = True,
    server: str | None = None,
    recipe: str = "",
    source: str = "",
    command: str = "evaluate_file",
    first: int = 0,
) -> Evaluation:
    """Attack a defended file, and the classifier inside it, with everything that a plan asks for.

    What attacks find is stored in `folder` as soon as each job ends; called again, nothing of that is done
    again. The caller has locked the folder (`storage.lock.locked_folder`). Results do not depend on `workers`.

    Args:
        path: The defended model file.
        data: Clean images in [0, 1] and true labels; images that are misclassified anyway stay in.
        plan: Attacks and budgets.
        folder: Where finished attacks are stored; None: nowhere.
        reporter: Shows every job.
        workers: Processes; None takes one a core; or "ray", where every node must see the file.
        networks: What the file is compared with in the ablation, and what attacks transfer from; None: nothing.
        ablation: Whether the ablation is measured.
        server: Address of a server of this file, for attacks over HTTP.
        recipe: Recipe of the data, for the report.
        source: The data in words, for the report.
        command: What was called, for the report.
        first: Number of the first image among the test images, for the report.

    Raises:
        RecipeError: If a budget is out of range, Ray is not there, or a process was killed.
        InputError: If the images do not fit the model.
        ModelFileError: If the file cannot be used.
    """
    check_workers(workers)
    until, end = (deadline(plan.time_limit, share) for share in (_FOR_ATTACKS, 1.0))
    networks, data_name = networks or Networks(), source or opened(path).manifest.provenance.data
    made = prepare(path, data, plan, folder=folder, networks=networks, server=server, data_name=data_name, until=until)
    file, setup, plan, data = made.file, made.setup, made.plan, made.setup.data
    left = what_is_left(made, ablation=ablation)
    reporter.line(
        f"{len(made.jobs)} {'attack' if len(made.jobs) == 1 else 'attacks and checks'} on {len(data)} images"
        f"{' and the ablation' if ablation else ''}: "
        f"about {duration(left.seconds)} of one core; half or twice as long is possible"
    )
    done = run_resumable(made.jobs, made.store, reporter, title="attacks", workers=workers)
    found = made.found(done)
    attacks = found.attacks
    defended_target, bare_target = open_targets(path)
    not_run = {**found.not_run, **unfinished(attacks, found.on_file, len(data))}
    with reporter.step("attacked images asked", 4) as step:
        defended = judged(defended_target, data, found.on_file)
        step.advance()
        bare = judged(bare_target, data, found.on_bare)
        step.advance()
        checked = judge_checks(
            setup, plan, defended_target, defended, attacks, done, networks=networks, data_name=data_name
        )
        step.advance()
        detection = _detection(file, data, attacks, defended)
        step.advance()
    ablated = AblationRun()
    if ablation:
        ablated = run_ablation(
            setup, networks, defended, bare, attacks, store=made.store, reporter=reporter, workers=workers, until=end
        )
    rows, clean = ablated.rows, clean_figures(defended.clean, data.labels)
    compared = comparisons(rows, ablated.served)
    return Evaluation(
        configuration=configuration_of(path, file, data, plan, recipe, source, command, made.versions, first),
        seconds=sum(float(one.notes[SECONDS]) for one in done.values()),
        clean=clean,
        bare_clean=clean_figures(bare.clean, data.labels),
        attacks=attack_rows(attacks, defended, bare, data.labels),
        not_run={**not_run, **checked.not_run, **ablated.not_run},
        worst_case=_worst(worst_of(attacks, defended, data.labels), rows.get(ablated.served)),
        worst_case_by_norm={
            norm: worst_of(attacks, defended, data.labels, norm)
            for norm in ("l2", "l0")
            if any(attacks[name].norm == norm for name in found.on_file)
        },
        bare_worst_case=_worst(worst_of(attacks, bare, data.labels), rows.get(BARE)),
        rejecting_label_accuracy=rows[FULL["reject"]].row.worst_case.label_accuracy
        if FULL["reject"] in rows
        else _answered_rightly(in_the_ball(attacks, defended), data),
        detection=detection,
        members_used={name: tuple(outcome.members_used.tolist()) for name, outcome in defended.outcomes.items()},
        curves=checked.curves,
        checks=checked.checks,
        ablation=tuple(measured.row for measured in rows.values()),
        comparisons=compared,
        must_hold=must_hold(file.manifest.decision.answer, compared, clean.members_used, file_flops(file)),
        costs=part_costs(rows, ablated.served),
        gallery=gallery_of_file(path, file.manifest.classes, data, attacks, defended),
    )


def _worst(found: WorstCase, measured: MeasuredRow | None) -> WorstCase:
    """The worst case, images included that were found for other rows of the table and that the file faces there."""
    if measured is None:
        return found
    return replace(found, **vars(measured.row.worst_case))


def _answered_rightly(outcomes: Mapping[str, Outcome], data: ImageSet) -> float:
    """Share of images that a file which rejects what it flags answers, and rightly, under every attack.

    Flags do not depend on what is done with them: what is flagged here is what would be rejected there.
    """
    kept = [outcome.right(data.labels) & ~outcome.flagged for outcome in outcomes.values()]
    return float(np.all(kept, axis=0).mean())


def _detection(
    file: ModelFile, data: ImageSet, attacks: Mapping[str, RedTeamAttack], defended: Judged
) -> DetectionFigures:
    attacked = {
        name: one.images for name, one in defended.attacked.items() if attacks[name].goal in {"mislead", "wrong label"}
    }
    with one_thread():
        return measure_detection(file, data, defended.clean.flagged, attacked)
