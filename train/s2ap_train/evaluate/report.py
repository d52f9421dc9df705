"""The evaluation as a table: oblivious next to adaptive, bare next to defended, never one without the other."""

from rich.console import Console

from s2ap_defend.tables import plain_table
from s2ap_train.evaluate.figures import AttackFigures
from s2ap_train.evaluate.protocol import Evaluation

_KNOWLEDGE = {
    "fgsm": "oblivious",
    "pgd": "oblivious",
    "unrolled-pgd": "knows all",
    "square": "queries",
}


def print_report(evaluation: Evaluation, console: Console) -> None:
    """Print every attack and the worst case per image for the bare classifier and the defended file."""
    bare, defended = evaluation.bare, evaluation.defended
    table = plain_table(
        *("attack", "attacker", "bare", "defended", "95%", "flagged", "corrected", "label", "asked"),
        title=f"Attacks that win: {evaluation.samples} images, l_inf {evaluation.eps:g}, seed {evaluation.seed}",
    )
    table.padding = 0
    for column in table.columns[2:]:
        column.justify = "right"
    table.add_row(
        "clean",
        "none",
        _percent(bare.clean.attack_success),
        _percent(defended.clean.attack_success),
        "",
        _percent(defended.clean.flagged),
        "",
        _percent(defended.clean.accuracy),
        f"{defended.clean.members_used:.1f}",
    )
    for name, figures in defended.attacks.items():
        table.add_row(name, _KNOWLEDGE[name], _percent(bare.attacks[name].attack_success), *_cells(figures))
    table.add_section()
    low, high = defended.worst_case.robust_accuracy_interval
    table.add_row(
        "worst case",
        "all",
        _percent(1.0 - bare.worst_case.robust_accuracy),
        f"[bold]{_percent(1.0 - defended.worst_case.robust_accuracy)}[/bold]",
        _interval(1.0 - high, 1.0 - low),
        "",
        "",
        _percent(defended.worst_case.label_accuracy),
        "",
    )
    console.print(table)
    console.print(
        "robust accuracy (right, flagged or not answered under every attack): "
        f"bare {_percent(bare.worst_case.robust_accuracy)}, "
        f"defended {_percent(defended.worst_case.robust_accuracy)}; {evaluation.seconds:.0f} s\n"
        "An attack wins when the input is answered, not flagged, and the final label is wrong; worst case: per image.\n"
        "oblivious: made on the bare classifier. corrected: flagged, and the final label is the true one.\n"
        "label: final label right, flagged or not. asked: members.",
        highlight=False,
        soft_wrap=True,
    )
    unanswered = {"clean": defended.clean.abstained} | {n: f.abstained for n, f in defended.attacks.items()}
    if any(unanswered.values()):
        shares = ", ".join(f"{name} {_percent(share)}" for name, share in unanswered.items())
        console.print(f"not answered (the defence abstains): {shares}", highlight=False, soft_wrap=True)
    alone = defended.worst_case.broken_only_by.get("square", 0)
    if alone:
        console.print(
            f"square alone broke {alone} images that the gradient attack did not: give the adaptive attack a larger "
            "budget before these figures are quoted"
        )


def _cells(figures: AttackFigures) -> tuple[str, ...]:
    return (
        _percent(figures.attack_success),
        _interval(*figures.attack_success_interval),
        _percent(figures.flagged),
        _percent(figures.corrected),
        _percent(figures.label_accuracy),
        f"{figures.members_used:.1f}",
    )


def _percent(share: float) -> str:
    return f"{100.0 * share:.1f}%"


def _interval(low: float, high: float) -> str:
    return f"{100.0 * low:.0f}-{100.0 * high:.0f}%"
