"""The closing table of a hardening: the same attacks on less and less defence."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from torch import Tensor

from s2ap_defend.model_file import open_model_file
from s2ap_defend.progress import Reporter
from s2ap_defend.tables import plain_table
from s2ap_train.data import ImageSet
from s2ap_train.evaluate import AdaptiveBudget, Evaluation
from s2ap_train.evaluate.adaptive import View, bare_plan
from s2ap_train.ladder_rows import MeasuredRow, Rung, attack_row, with_purifier
from s2ap_train.measures.paired import NOISE, PairedDifference, paired_difference
from s2ap_train.models import fold_batch_norm
from s2ap_train.network import Network as KnownNetwork
from s2ap_train.parts import Parts
from s2ap_train.recipe import Recipe
from s2ap_train.threads import one_thread
from s2ap_train.twin import Twin

__all__ = ["Ladder", "Rung", "measure_ladder", "print_ladder", "purifier_in_words"]

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Ladder:
    """All rows, least defended first, and what they were measured on.

    Attributes:
        rungs: The rows.
        samples: Test images.
        eps: l_inf budget, pixels in [0, 1].
        classifier: Row of the classifier that is in the file.
        purifier: Which images that classifier gets right under the adaptive attack, without the purifier and with it;
            None: the purifier is off.
    """

    rungs: tuple[Rung, ...]
    samples: int
    eps: float
    classifier: str
    purifier: PairedDifference | None


def measure_ladder(
    recipe: Recipe, parts: Parts, file: Path, data: ImageSet, evaluation: Evaluation, reporter: Reporter
) -> Ladder:
    """Measure every row; the last one repeats the figures of `evaluation`, the attacks on the file.

    Args:
        recipe: Gives eps, seed and budget.
        parts: The trained networks.
        file: The model file, for its purifier and classifier.
        data: Test images.
        evaluation: The evaluation of the file on the same images.
        reporter: Told about every row.
    """
    budget = AdaptiveBudget.named(recipe.evaluation.budget)
    opened = open_model_file(file)
    off = opened.manifest.purifier.off
    rows: dict[str, MeasuredRow] = {}
    with reporter.step("ablation", 3 if off else 4) as step, one_thread():
        for name in ("plain", "adversarial", "pruned"):
            network = parts.classifier(name)
            view = _network_view(fold_batch_norm(network.model))
            row = attack_row(
                _title(name, network),
                view,
                view,
                bare_plan(budget),
                data,
                eps=recipe.eps,
                seed=recipe.seed,
                budget=budget,
            )
            rows[name] = row
            step.advance(rows[name].rung.name)
        effect = None
        if not off:
            pair = with_purifier(rows[recipe.classifier], Twin.from_file(opened), data, recipe.eps, recipe.seed, budget)
            rows[recipe.classifier], rows["with purifier"] = pair
            effect = paired_difference(pair[0].right, pair[1].right)
            step.advance("with purifier")
    rungs = [row.rung for row in rows.values()]
    defended = evaluation.defended
    rungs.append(
        Rung(
            name="full defence",
            clean_accuracy=defended.clean.accuracy,
            pgd_accuracy=1.0 - defended.attacks["pgd"].attack_success,
            adaptive_accuracy=defended.worst_case.robust_accuracy,
            label_accuracy=defended.worst_case.label_accuracy,
            flagged=defended.attacks["unrolled-pgd"].flagged,
            clean_flagged=defended.clean.flagged,
            members_used=defended.clean.members_used,
        )
    )
    return Ladder(tuple(rungs), len(data), recipe.eps, rows[recipe.classifier].rung.name, effect)


def print_ladder(ladder: Ladder, console: Console) -> None:
    """Print the rows as a table, with how to read it."""
    table = plain_table("", "clean", "PGD", "adaptive", "label", "flagged", "asked")
    for rung in ladder.rungs:
        table.add_row(
            rung.name,
            f"{rung.clean_accuracy:.1%}",
            f"{rung.pgd_accuracy:.1%}",
            f"[bold]{rung.adaptive_accuracy:.1%}[/bold]",
            f"{rung.label_accuracy:.1%}",
            f"{rung.clean_flagged:.1%} / {rung.flagged:.1%}",
            f"{rung.members_used:.1f}",
        )
    console.print(table)
    console.print(
        f"{ladder.samples} test images, l_inf eps {ladder.eps:g}; a 95 % interval is up to "
        f"{98 / ladder.samples**0.5:.0f} points wide each way.\n"
        "clean     accuracy without attack\n"
        "PGD       accuracy under an attack made on the row's network, without its defence\n"
        "adaptive  worst case per image of all attacks; the attacker knows everything, thresholds included,\n"
        "          and wins when the input is not flagged and the final label is wrong\n"
        "label     the same, if a flagged image with a wrong label counts against the defence too\n"
        "flagged   clean images / images under the adaptive attack\n"
        "asked     members asked for a clean image\n"
        f"purifier  {purifier_in_words(ladder)}",
        highlight=False,
        soft_wrap=True,
    )


def purifier_in_words(ladder: Ladder) -> str:
    """Whether the purifier, in front of the classifier alone, changes the adaptive figure beyond noise (p < 0.05)."""
    effect = ladder.purifier
    if effect is None:
        return "off"
    change = f"from {effect.before:.1%} to {effect.after:.1%} (exact McNemar p = {effect.p_value:.2g})"
    front = f"in front of this classifier ({ladder.classifier})"
    if effect.p_value >= NOISE:
        return f"{front} it changes the adaptive figure by no more than noise, {change}"
    verb = "LOWERS" if effect.after < effect.before else "raises"
    return f"{front} it {verb} the adaptive figure beyond noise, {change}"


def _title(name: str, network: KnownNetwork) -> str:
    if name == "pruned":
        return f"{network.method}-pruned".replace("s2ap", "S2AP")
    return {"plain": "undefended", "adversarial": "adversarially trained"}[name]


def _network_view(network: Network) -> View:
    return lambda images, path, members: (network(images).log_softmax(1), None)  # noqa: ARG005
