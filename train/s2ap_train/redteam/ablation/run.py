"""The table of less and less defence: every row attacked, each under all that was found for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from s2ap_defend.progress import Reporter
from s2ap_train.jobs import Store, Workers
from s2ap_train.redteam.ablation.ablation import Ablation, measure_ablation
from s2ap_train.redteam.ablation.ablation_rows import BARE, rows_of, served_row
from s2ap_train.redteam.ablation.networks import Networks
from s2ap_train.redteam.attacks.attack import RedTeamAttack
from s2ap_train.redteam.campaign import Setup
from s2ap_train.redteam.judging import Judged
from s2ap_train.redteam.target import opened

__all__ = ["AblationRun", "run_ablation"]


@dataclass(frozen=True)
class AblationRun:
    """The ablation, and the rows that are missing there."""

    ablation: Ablation | None = None
    served: str = ""
    not_run: Mapping[str, str] = field(default_factory=dict)


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
    """Every row of the ablation, the file and its classifier under all that the attacks in the l_inf ball found.

    Args:
        setup: Of the attacks.
        networks: What the file is compared with.
        defended: What the attacks reached on the file.
        bare: What they reached on the classifier.
        attacks: Those that ran, by name.
        store: Of what is found.
        reporter: Shows every job.
        workers: Processes.
        until: Time after which nothing is begun.
    """
    served = served_row(opened(setup.model))
    rows = rows_of(setup.model, networks.stages)
    attacked = {
        name: [one.images for attack, one in judgement.attacked.items() if attacks[attack].norm == "linf"]
        for name, judgement in ((served, defended), (BARE, bare))
    }
    ablation = measure_ablation(
        rows,
        [setup.task(shard) for shard in setup.shards()],
        attacked={name: images for name, images in attacked.items() if images},
        store=store,
        reporter=reporter,
        workers=workers,
        until=until,
    )
    late = {row.name: "the time limit was over before it was attacked" for row in rows if row.name not in ablation.rows}
    return AblationRun(ablation, served, {f"row {name!r}": why for name, why in {**networks.missing, **late}.items()})
