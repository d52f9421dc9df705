"""Networks, attacked sets and calibrated groups of the detection benchmark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from detection_groups import Asker, CalibratedGroup, Judged, attack_figures, clean_figures
from detection_sets import AttackedSet, AttackedSets

from s2ap_defend.progress import Reporter
from s2ap_defend.types import Float32
from s2ap_train.attacks.catalogue import ATTACKS
from s2ap_train.calibration import Jury
from s2ap_train.data import ImageSet
from s2ap_train.hardening.fitting_attacks import as_copies, attacked_alone, attacked_together, copied_image
from s2ap_train.hardening.network import Network
from s2ap_train.hardening.train import train_networks
from s2ap_train.recipe import EnsembleRecipe

MIX = "mix"


@dataclass(frozen=True)
class Preset:
    """How large the benchmark is for a recipe.

    Attributes:
        members: Of each family under our test; of the mix, as many as the recipe says.
        paper_members: That the paper's test asks.
        paper_families: Of which families it asks so many.
        samples: Test images that are attacked.
        eps: l_inf budget of the named attacks, pixels in [0, 1].
        budgets: l_inf budgets of PGD on the base, and on base and members together.
        cut: Settings of named attacks that would take hours otherwise.
    """

    members: int
    paper_members: int
    paper_families: tuple[str, ...]
    samples: int
    eps: float
    budgets: tuple[float, ...]
    cut: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


_OF_THE_PAPER = ("random_channel", "l1_norm", "lottery_ticket", "subnetwork", "mutation")
PRESETS = {"digits": Preset(8, 100, _OF_THE_PAPER, 400, 0.15, (0.05, 0.1, 0.15, 0.3))}
DEFAULT = Preset(
    members=2,
    paper_members=10,
    paper_families=("random_channel", "mutation"),
    samples=300,
    eps=8 / 255,
    budgets=(2 / 255, 4 / 255, 8 / 255),
    cut={
        "jsma": {"tries": 1},
        "cw-l2": {"steps": 200},
        "one-pixel": {"population": 100, "generations": 10},
        "local-search": {"rounds": 30},
        "square": {"queries": 500},
    },
)


class Benchmark:
    """Networks, attacked sets and calibrated groups of one recipe.

    Args:
        recipe: With as many members of each family as are trained.
        mix: How many of each family are in the chosen mix.
        preset: Sizes.
        named: Names of the attacks on the base.
        folder: Work folder.
        reporter: Shows every step.
        workers: Processes that train.
    """

    def __init__(
        self,
        recipe: EnsembleRecipe,
        mix: Mapping[str, int],
        preset: Preset,
        named: Sequence[str],
        folder: Path,
        reporter: Reporter,
        workers: int | None,
    ) -> None:
        self.recipe, self.preset, self.named, self.reporter = recipe, preset, named, reporter
        self.splits = recipe.load_data()
        self.base, self.families = train_networks(recipe, self.splits, folder, reporter, workers=workers)
        self.data = self.splits.test.subset(slice(0, preset.samples))
        self.sets = AttackedSets(folder / "attacked", self.data, recipe.seed)
        self.ask = Asker(self.base)
        self.groups = {name: members[: preset.members] for name, members in self.families.items() if members}
        self.groups[MIX] = tuple(member for name, count in mix.items() for member in self.families[name][:count])
        self._fitting: dict[str, ImageSet] = {}
        self._budgets: dict[str, dict[str, AttackedSet]] = {}

    @cached_property
    def attacks(self) -> dict[str, AttackedSet]:
        """The named attacks on the bare base."""
        made = {}
        with self.reporter.step("attacks on the bare classifier", len(self.named)) as step:
            for name in self.named:
                attack = ATTACKS[name]
                budget = {attack.budget: self.preset.eps} if attack.norm == "linf" and attack.budget else {}
                made[name] = self.sets.named(name, self.base.model, **budget, **self.preset.cut.get(name, {}))
                step.advance(f"{name} {made[name].seconds:.0f} s")
        return made

    def budgets(self, group: str) -> dict[str, AttackedSet]:
        """PGD at every budget on the base alone, and on base and this group's members together."""
        if group not in self._budgets:
            together = [member.model for member in self.groups[group]]
            self._budgets[group] = {
                f"{name} {budget_name(eps)}": self.sets.pgd(f"{name}-{budget_name(eps)}", self.base.model, members, eps)
                for name, members in (("base", ()), ("joint", together))
                for eps in self.preset.budgets
            }
        return self._budgets[group]

    def jury(self, members: tuple[Network, ...]) -> Jury:
        """Who votes on what is flagged: the jurors among these members, all of them where there is none."""
        roles = {id(one): self.recipe.members[name].role for name, family in self.families.items() for one in family}
        weights = tuple(float(roles[id(one)] == "juror") for one in members)
        return Jury(weights if any(weights) else (1.0,) * len(members), (), "accurate")

    def calibrated(
        self,
        group: str,
        members: tuple[Network, ...],
        *,
        all_vote: bool = False,
        **settings: Any,  # noqa: ANN401 - fields of Detection
    ) -> CalibratedGroup:
        """A test of these members, fitted under attacks on the base and on base and group together.

        The base answers what is not flagged; what is flagged gets the vote of the jurors, or of all.
        """
        splits, ask = self.splits, self.ask
        if group not in self._fitting:
            together = [member.model for member in self.groups[group]]
            known = {"eps": self.recipe.eps, "seed": self.recipe.seed}
            attacked = [*self._alone, *attacked_together(self.base.model, together, splits.fit, **known)]
            self._fitting[group] = as_copies(attacked, splits.fit)
        copies = self._fitting[group]
        of_copies = replace(ask(members, copies), image=copied_image(copies, splits.fit))
        fit = (ask(members, splits.fit), of_copies)
        config = replace(self.recipe.detection, **settings)
        jury = Jury.behind_classifier(len(members)) if all_vote else self.jury(members)
        return CalibratedGroup(fit, ask(members, splits.calibration), config, jury)

    @cached_property
    def _alone(self) -> list[Float32]:
        return attacked_alone(self.base.model, self.splits.fit, eps=self.recipe.eps, seed=self.recipe.seed)

    def figures(
        self, group: str, members: tuple[Network, ...], test: CalibratedGroup
    ) -> tuple[dict[str, Any], dict[str, Judged]]:
        """JSON figures of one test, and what it made of the clean images ('clean') and of every attacked set."""
        clean = self.ask(members, self.data)
        judged = {"clean": test.judge(clean, clean.right)}
        found = {"clean": clean_figures(judged["clean"], clean)}
        for part, sets in (("attacks", self.attacks), ("budgets", self.budgets(group))):
            found[part] = {}
            for name, attacked in sets.items():
                answers = self.ask(members, attacked)
                judged[name] = test.judge(answers, clean.right & ~answers.right)
                found[part][name] = attack_figures(judged[name], judged["clean"], answers)
        return found, judged


def budget_name(eps: float) -> str:
    """A budget as people write it: 8/255, or 0.15."""
    grey = eps * 255
    return f"{grey:.0f}/255" if abs(grey - round(grey)) < 1e-6 else f"{eps:g}"
