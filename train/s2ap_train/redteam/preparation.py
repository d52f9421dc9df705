"""What an evaluation is made of before anything is attacked: its jobs, and where they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from s2ap_defend.errors import InputError
from s2ap_defend.images import check_images
from s2ap_defend.model_file import ModelFile
from s2ap_train.data import ImageSet
from s2ap_train.jobs import Done, ResumableJob, Store
from s2ap_train.redteam.ablation.networks import Networks
from s2ap_train.redteam.attacks.attack import RedTeamAttack
from s2ap_train.redteam.attacks.oblivious import SEARCH
from s2ap_train.redteam.attacks.white_box_search import SKIPPED
from s2ap_train.redteam.campaign import Attacked, Setup, attack_jobs, gathered
from s2ap_train.redteam.checks.run import check_jobs
from s2ap_train.redteam.configuration import versions_here
from s2ap_train.redteam.coverage import able
from s2ap_train.redteam.plan import Plan, check_budgets
from s2ap_train.redteam.target import opened

__all__ = ["FoundAttacks", "Prepared", "prepare"]


@dataclass(frozen=True)
class FoundAttacks:
    """What all attacks found that could be run.

    Attributes:
        attacks: By name.
        on_file: What they found on the file.
        on_bare: What they found on the classifier inside it.
        not_run: Why the others were not run.
    """

    attacks: Mapping[str, RedTeamAttack]
    on_file: Mapping[str, Attacked]
    on_bare: Mapping[str, Attacked]
    not_run: Mapping[str, str]


@dataclass(frozen=True)
class Prepared:
    """An evaluation that may begin.

    Attributes:
        file: The file.
        setup: What its attacks depend on.
        plan: Its budget is that of so many classes.
        networks: What the file is compared with.
        versions: Of everything that decides a result.
        store: Of what is found.
        chosen: The attacks that can be run.
        not_run: Why others cannot.
        jobs: The attacks, curves and checks; the ablation, which starts from them, is not among them.
    """

    file: ModelFile
    setup: Setup
    plan: Plan
    networks: Networks
    versions: Mapping[str, str]
    store: Store
    chosen: tuple[RedTeamAttack, ...]
    not_run: Mapping[str, str]
    jobs: tuple[ResumableJob, ...]

    def found(self, done: Done) -> FoundAttacks:
        """What the jobs found, by attack; one that had nothing to attack counts as one that was not run."""
        on_file, on_bare = gathered(self.setup, self.chosen, done)
        skipped = {name: str(one.notes[SKIPPED]) for name, one in on_file.items() if SKIPPED in one.notes}
        return FoundAttacks(
            attacks={attack.name: attack for attack in self.chosen if attack.name not in skipped},
            on_file={name: one for name, one in on_file.items() if name not in skipped},
            on_bare={name: one for name, one in on_bare.items() if name not in skipped},
            not_run={**self.not_run, **skipped},
        )


def prepare(
    path: Path,
    data: ImageSet,
    plan: Plan,
    *,
    folder: Path | None,
    networks: Networks,
    data_name: str,
    server: str | None = None,
    until: float | None = None,
) -> Prepared:
    """Check a file, its data and a plan, and list the jobs.

    Args:
        path: The defended model file.
        data: As for `evaluate_file`, like `plan`, `folder`, `networks` and `server`.
        plan: See `data`.
        folder: See `data`.
        networks: See `data`.
        data_name: The data in words.
        server: See `data`.
        until: Time after which no attack is begun but the search.

    Raises:
        RecipeError: If a budget is out of range.
        InputError: If the images do not fit the model.
        ModelFileError: If the file cannot be used.
    """
    file = opened(path)
    _, height, width = file.manifest.input.shape
    check_budgets(plan.eps, plan.l2, plan.pixels, height * width)
    data = ImageSet(check_images(data.images, file.manifest.input.shape), data.labels)
    classes = len(file.manifest.classes)
    _check_labels(data, classes)
    plan = replace(plan, budget=plan.budget.for_classes(classes))
    setup = Setup(path, data, plan.eps, plan.l2, plan.pixels, plan.seed, plan.budget, networks.surrogates, server)
    versions = versions_here()
    store = Store(folder, (setup.key(file.manifest.weights_sha256, file.manifest.graph_sha256), versions))
    chosen, not_run = able(plan.attacks, setup)
    jobs = attack_jobs(setup, chosen, until=until, always=(SEARCH.name,))
    jobs += check_jobs(setup, plan, networks, data_name, until)
    return Prepared(file, setup, plan, networks, versions, store, chosen, not_run, tuple(jobs))


def _check_labels(data: ImageSet, classes: int) -> None:
    labels = data.labels
    if labels.shape != (len(data.images),) or labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"labels have shape {list(labels.shape)}, expected one of 0..{classes - 1} for each of {len(data.images)} "
            "images"
        )
