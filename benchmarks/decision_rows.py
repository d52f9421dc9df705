"""Systems of the decision benchmark: files of every decision, single networks next to them, and what attacks leave."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from s2ap_defend.decision_record import Purify
from s2ap_defend.model_file import write_model_file
from s2ap_defend.progress import Reporter
from s2ap_defend.sequential import Answer
from s2ap_defend.stages import CLASSIFIER, cut_stage
from s2ap_export.hardening.assembly import assemble, traced_networks
from s2ap_train.adaptive.budget import AdaptiveBudget
from s2ap_train.calibration.flops import StageFlops
from s2ap_train.data import ImageSet, Splits
from s2ap_train.hardening.decision_choice.choice import choose_decision
from s2ap_train.hardening.train import Components, train_components
from s2ap_train.jobs import Store, Workers
from s2ap_train.recipe import Recipe
from s2ap_train.recipe.purifier_grid import OFF
from s2ap_train.recipe.tables import DecisionRecipe
from s2ap_train.redteam.ablation.ablation import Effort, measure_ablation
from s2ap_train.redteam.ablation.ablation_rows import Row, first_juror, open_row, served_row
from s2ap_train.redteam.ablation.compute import file_flops
from s2ap_train.redteam.ablation.confidence import threshold_at
from s2ap_train.redteam.ablation.measured import MeasuredRow
from s2ap_train.redteam.ablation.names import JURY, UNFLAGGED
from s2ap_train.redteam.campaign import Setup
from s2ap_train.redteam.rows import Measure
from s2ap_train.redteam.target import opened
from s2ap_train.statistics.paired import paired_difference
from s2ap_train.storage.lock import locked_folder

NATURAL, ROBUST, SURE = "classifier alone", "r", "r, least confident flagged"
VOTE, MIX = "jury, never flagged", "chosen mix, never flagged"
ANSWERS: tuple[Answer, ...] = ("robust", "mixed", "accurate")
SHARD = 150
"""Images of one job, at the most; small networks are as fast on many images as on few."""


@dataclass(frozen=True)
class System:
    """One row of the table.

    Attributes:
        row: What is attacked; its name is the key of the system, the same for every seed.
        who: Who answers.
        flag: What raises the flag; empty: nothing does.
        purify: When images are purified; empty: there is no purifier.
    """

    row: Row
    who: str
    flag: str = ""
    purify: str = ""


def measured_systems(
    recipe: Recipe,
    first: int,
    samples: int,
    budget: AdaptiveBudget,
    answers: Sequence[Answer],
    policies: Sequence[Purify],
    mixes: Sequence[tuple[float, float]],
    folder: Path,
    checkpoints: Path | None,
    reporter: Reporter,
    workers: Workers,
) -> dict[str, Any]:
    """Harden what is missing, attack all systems and try what was found on all; JSON values.

    Args:
        recipe: Networks, purifier, and which decisions are compared.
        first: Of the test images; the very first where too few are left behind it.
        samples: Test images; fewer where there are not as many.
        budget: Of every attack, at the least.
        answers: Whose files are compared.
        policies: When images are purified, in the files of every answer.
        mixes: Shares and amplifications of the jury that are compared with the chosen mix, under the last policy.
        folder: Of model files and of what attacks find.
        checkpoints: Of the networks; None: next to them.
        reporter: Shows every step.
        workers: Processes.
    """
    splits, parts = recipe.load_data(), checkpoints or folder / "parts"
    first = first if first + samples <= len(splits.test) else 0
    data = splits.test.subset(slice(first, first + samples))
    with locked_folder(parts):
        components = train_components(recipe, splits, parts, reporter, workers=workers)
        decisions, fitting = chosen_decisions(recipe, answers, components, splits, parts, reporter, workers)
        cheapest = policies[-1]
        wanted = [(f"{answer}, {policy}", decisions[answer], policy) for answer in answers for policy in policies]
        weights = recipe.decision_choice.juror_weights
        wanted += [(f"{words(one)}, {cheapest}", one, cheapest) for one in _others(decisions, weights, mixes)]
        served: list[System] = []
        with reporter.step("files", len(wanted)) as step:
            networks = traced_networks(recipe, components, splits)
            for key, decision, policy in wanted:
                path = folder / f"{len(served)}.onnx"
                changed = decided(recipe, decision, policy)
                write_model_file(
                    *assemble(changed, components, splits, folder, networks=networks, fitting=fitting), path
                )
                served.append(_served(key, words(decision), policy, path))
                step.advance(key)
    with locked_folder(folder):
        systems, alarms = _beside(served, data, cheapest)
        setup = Setup(served[0].row.model, data, recipe.eps, 0.0, 0, recipe.seed, budget)
        effort = most_work([one.row for one in served], budget)
        rows = measure_ablation(
            [one.row for one in systems],
            [setup.task(slice(start, min(start + SHARD, len(data)))) for start in range(0, len(data), SHARD)],
            attacked={},
            effort=effort,
            store=Store(folder / "found", setup.key("", "")),
            reporter=reporter,
            workers=workers,
        )
    flops = {path: file_flops(opened(path)) for path in {one.row.model for one in systems}}
    return {
        "seed": recipe.seed,
        "split": "test",
        "first": first,
        "samples": len(data),
        "eps": recipe.eps,
        "effort": {"descents": effort.descents, "steps": effort.steps},
        "systems": [_figures(one, rows, alarms, flops[one.row.model]) for one in systems],
        "parts": _parts(rows, policies),
    }


def chosen_decisions(
    recipe: Recipe,
    answers: Sequence[Answer],
    components: Components,
    splits: Splits,
    folder: Path,
    reporter: Reporter,
    workers: Workers,
) -> tuple[dict[Answer, DecisionRecipe], ImageSet]:
    """(By answer the decision that `harden` would export, attacked images that evidence is fitted on).

    Behind the classifier stands the jury that is chosen.
    """
    found: dict[Answer, DecisionRecipe] = {}
    for answer in answers:
        asked: Answer = "robust" if answer == "accurate" else answer
        if asked not in found:
            started = recipe.model_copy(update={"decision": recipe.decision.model_copy(update={"answer": asked})})
            chosen = choose_decision(started, components, splits, folder, reporter, workers=workers, strict=False)
            found[asked], fitting = chosen.decision, chosen.fitting
        if asked == "mixed" and found[asked].answer != "mixed":  # no mix keeps enough labels: the recipe's own then
            found[asked] = recipe.decision.model_copy(
                update={"answer": "mixed", "juror_weight": found[asked].juror_weight}
            )
        if answer == "accurate":
            found[answer] = found[asked].model_copy(update={"answer": "accurate"})
    return {answer: found[answer] for answer in answers}, fitting


def _others(
    decisions: dict[Answer, DecisionRecipe], weights: Sequence[float], mixes: Sequence[tuple[float, float]]
) -> list[DecisionRecipe]:
    """The chosen jury with other weights of the jurors, and other mixes with the chosen one's; each once."""
    found = []
    if jury := decisions.get("robust"):
        found += [jury.model_copy(update={"juror_weight": weight}) for weight in weights]
    if mix := decisions.get("mixed"):
        found += [mix.model_copy(update={"jury_share": share, "amplification": power}) for share, power in mixes]
    known = {words(one) for one in decisions.values()}
    return [one for one in found if words(one) not in known]


def decided(recipe: Recipe, decision: DecisionRecipe, policy: Purify) -> Recipe:
    """The recipe with a decision; where nothing is purified, the purifier has no steps."""
    purifier = OFF if policy == "off" else recipe.purifier
    return recipe.model_copy(update={"purifier": purifier, "decision": decision.model_copy(update={"purify": policy})})


def words(decision: DecisionRecipe) -> str:
    """Who answers, in words."""
    share, weight = decision.jury_share, f", jurors weigh {decision.juror_weight:g}"
    return {
        "robust": f"jury{weight}",
        "mixed": f"{1 - share:.2g} classifier + {share:.2g} jury^{decision.amplification:g}{weight}",
        "accurate": f"classifier; jury where flagged{weight}",
    }[decision.answer]


def most_work(rows: Sequence[Row], budget: AdaptiveBudget) -> Effort:
    """The work of the longest plan against any of these files."""
    plans = [Effort.of(open_row(row), budget, goal) for row in rows for goal in row.goals]
    return Effort(*(max(values) for values in zip(*map(astuple, plans), strict=True)))


def _served(key: str, who: str, policy: Purify, path: Path) -> System:
    row = Row(key, path, goals=("mislead", "wrong label"), chain=served_row(opened(path)))
    return System(row, who, "members", policy)


def _beside(served: Sequence[System], data: ImageSet, cheapest: Purify) -> tuple[list[System], dict[str, str]]:
    """(Single networks and answers that never flag, then the files; by key, r at the false alarms of that file)."""
    file = opened(served[0].row.model)
    juror = first_juror(file)
    if juror is None:  # our own bug: the pruned classifier always is
        raise ValueError("the file has no juror")
    model, stage = served[0].row.model, juror.SerializeToString()
    found = [
        System(Row(NATURAL, model, cut_stage(file.proto, CLASSIFIER).SerializeToString()), "classifier"),
        System(Row(ROBUST, model, stage), "r"),
    ]
    sure: dict[int, System] = {}
    alarms: dict[str, str] = {}
    for one in served:
        outcome = open_row(one.row).system(data.images, data.labels)
        count = int((outcome.flagged | outcome.abstained).sum())
        if count not in sure:
            row = Row(f"{SURE}, {count} of {len(data)}", model, stage, threshold_at(juror, data.images, count))
            sure[count] = System(row, "r", "r least confident")
        alarms[one.row.name] = sure[count].row.name
    by_name = {one.row.name: one for one in served}
    for key, chain, answer in ((VOTE, JURY, "robust"), (MIX, UNFLAGGED, "mixed")):
        if like := by_name.get(f"{answer}, {cheapest}"):
            found.append(System(Row(key, like.row.model, chain=chain), like.who, purify=like.purify))
    return [*found, *(sure[count] for count in sorted(sure)), *served], alarms


def _figures(system: System, rows: dict[str, MeasuredRow], alarms: dict[str, str], flops: StageFlops) -> dict[str, Any]:
    """One row and its differences from r, and from r with as many false alarms, as JSON values."""
    measured = rows[system.row.name]
    row, worst = measured.row, measured.row.worst_case
    against: dict[Measure, str] = {"clean accuracy": ROBUST, "label right": ROBUST}
    if system.row.name in alarms:
        against["right or flagged"] = alarms[system.row.name]
    return {
        "key": system.row.name,
        "who": system.who,
        "flag": system.flag,
        "purify": system.purify,
        "clean": row.clean_accuracy,
        "clean_flagged": row.clean_flagged,
        "label_right": worst.label_accuracy,
        "label_right_interval": list(worst.label_accuracy_interval),
        "right_or_flagged": worst.robust_accuracy,
        "right_or_flagged_interval": list(worst.robust_accuracy_interval),
        "members_used": row.members_used,
        "cost": row.cost,
        "member_flops": flops.members.tolist(),
        "classifier_flops": flops.classifier,
        "work": [row.descents, row.steps],
        "against": {
            measure: {"baseline": name} | paired_difference(rows[name].of(measure), measured.of(measure)).to_json()
            for measure, name in against.items()
            if name != system.row.name
        },
    }


def _parts(rows: dict[str, MeasuredRow], policies: Sequence[Purify]) -> list[dict[str, Any]]:
    """What each part adds or costs, after minus before, as JSON values."""
    last = policies[-1]
    pairs: list[tuple[str, Measure, str, str]] = [
        ("vote of the jury instead of r", "label right", ROBUST, VOTE),
        ("chosen mix instead of the vote", "clean accuracy", VOTE, MIX),
        ("chosen mix instead of the vote", "label right", VOTE, MIX),
    ]
    for before, answer in ((VOTE, "robust"), (MIX, "mixed"), (NATURAL, "accurate")):
        for measure in ("label right", "right or flagged"):
            pairs.append((f"flags, {answer}", measure, before, f"{answer}, {last}"))
            pairs += [
                (f"purified: {policy} instead of {last}, {answer}", measure, f"{answer}, {last}", f"{answer}, {policy}")
                for policy in policies[:-1]
            ]
    return [
        {"part": part, "measure": measure} | paired_difference(rows[a].of(measure), rows[b].of(measure)).to_json()
        for part, measure, a, b in pairs
        if a in rows and b in rows
    ]
