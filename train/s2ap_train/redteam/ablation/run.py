"""The ablation of an evaluation: every row attacked, each under all that was found for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from s2ap_defend.progress import Reporter
from s2ap_defend.types import Float32
from s2ap_train.jobs import Store, Workers
from s2ap_train.redteam.ablation.ablation import Effort, measure_ablation
from s2ap_train.redteam.ablation.ablation_rows import Row, first_juror, open_row, rows_of, served_row
from s2ap_train.redteam.ablation.confidence import threshold_at
from s2ap_train.redteam.ablation.measured import MeasuredRow
from s2ap_train.redteam.ablation.names import BARE, CONFIDENCE, PRUNED
from s2ap_train.redteam.ablation.networks import Networks
from s2ap_train.redteam.attacks.attack import RedTeamAttack
from s2ap_train.redteam.campaign import Setup
from s2ap_train.redteam.judging import Judged
from s2ap_train.redteam.target import opened

__all__ = ["AblationRun", "Asked", "ablation_asked", "run_ablation", "served_effort"]


@dataclass(frozen=True)
class Asked:
    """What an ablation is asked to measure: its rows, and the images that the red team found already, by row."""

    rows: tuple[Row, ...]
    attacked: Mapping[str, Sequence[Float32]]


@dataclass(frozen=True)
class AblationRun:
    """The rows of the ablation by name, the one that is the file as it is served, and why others are missing."""

    rows: Mapping[str, MeasuredRow] = field(default_factory=dict)
    served: str = ""
    not_run: Mapping[str, str] = field(default_factory=dict)


def served_effort(setup: Setup) -> Effort:
    """The work of the search on the file as it is served, which no other row is attacked with less of."""
    served = served_row(opened(setup.model))
    row = next(row for row in rows_of(setup.model, {}) if row.name == served)
    return Effort.of(open_row(row), setup.budget)


def ablation_asked(
    setup: Setup, networks: Networks, defended: Judged, bare: Judged, attacks: Mapping[str, RedTeamAttack]
) -> Asked:
    """The rows, and what was found for the file and for its classifier in the l_inf ball.

    The first juror flags its least confident inputs in one of them: as many of these clean images as the file flags.

    Args:
        setup: Of the attacks.
        networks: What the file is compared with.
        defended: What the attacks reached on the file.
        bare: What they reached on the classifier.
        attacks: Those that ran, by name.
    """
    file = opened(setup.model)
    juror = first_juror(file)
    alarms = int((defended.clean.flagged | defended.clean.abstained).sum())
    threshold = None if juror is None else threshold_at(juror, setup.data.images, alarms)
    found = {
        name: [one.images for attack, one in judgement.attacked.items() if attacks[attack].norm == "linf"]
        for name, judgement in ((served_row(file), defended), (BARE, bare))
    }
    attacked = {name: images for name, images in found.items() if images}
    return Asked(rows_of(setup.model, networks.stages, threshold), attacked)


def run_ablation(
    setup: Setup,
    networks: Networks,
    defended: Judged,
    bare: Judged,
    attacks: Mapping[str, RedTeamAttack],
    *,
    store: Store,
    reporter: Reporter,
    workers: Workers,
    until: float | None,
) -> AblationRun:
    """Every row of `ablation_asked`, the file and its classifier under all that the attacks in the l_inf ball found.

    Args:
        setup: As for `ablation_asked`, like `networks`, `defended`, `bare` and `attacks`.
        networks: See `setup`.
        defended: See `setup`.
        bare: See `setup`.
        attacks: See `setup`.
        store: Of what is found.
        reporter: Shows every job.
        workers: Processes.
        until: Time after which nothing is begun.
    """
    file = opened(setup.model)
    asked = ablation_asked(setup, networks, defended, bare, attacks)
    measured = measure_ablation(
        asked.rows,
        [setup.task(shard) for shard in setup.shards()],
        attacked=asked.attacked,
        effort=served_effort(setup),
        store=store,
        reporter=reporter,
        workers=workers,
        until=until,
    )
    absent = dict.fromkeys((PRUNED, CONFIDENCE), "the file has no juror") if first_juror(file) is None else {}
    late = {
        row.name: "the time limit was over before it was attacked" for row in asked.rows if row.name not in measured
    }
    missing = {**networks.missing, **absent, **late}
    return AblationRun(measured, served_row(file), {f"row {name!r}": why for name, why in missing.items()})
