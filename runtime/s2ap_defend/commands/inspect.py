"""`s2ap-defend inspect`: what is in a model file."""

from collections import Counter
from pathlib import Path

import click
import orjson
from rich.console import Console
from rich.table import Table

from s2ap_defend.commands.decision_tables import decision_table, print_frontier
from s2ap_defend.commands.options import model_argument
from s2ap_defend.manifest import CalibrationRecord, ChoiceRecord, Manifest, PurifierDescription
from s2ap_defend.model_file import ModelFile, open_model_file
from s2ap_defend.sequential import asked_members
from s2ap_defend.stages import StageSize, stage_sizes
from s2ap_defend.tables import foreign, harmless, plain_table, print_table


@click.command()
@model_argument
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def inspect(model: Path, as_json: bool) -> None:
    """Verify a model file and show its stages, members, decision and measured accuracy."""
    opened = open_model_file(model)
    stages = stage_sizes(opened.outline)
    if as_json:
        click.echo(orjson.dumps(_as_json(opened, stages), option=orjson.OPT_INDENT_2).decode())
        return
    console = Console()
    manifest, made = opened.manifest, opened.manifest.provenance
    more = " ..." if len(manifest.classes) > 12 else ""
    console.print(
        f"{harmless(str(model))}  {opened.size_bytes / 1e6:.2f} MB  format {manifest.format_version}  hashes verified\n"
        f"input   float32 [N, {', '.join(map(str, manifest.input.shape))}] in [0, 1]\n"
        f"classes {len(manifest.classes)}: {harmless(', '.join(manifest.classes[:12]))}{more}\n"
        f"made by recipe {harmless(made.recipe)}, seed {made.seed}, data {harmless(made.data)}, "
        f"classifier {harmless(made.classifier)}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if manifest.sparse_weights:
        dense = sum(size.size_bytes for size in stages.values()) / 1e6
        console.print(
            f"sparse  {manifest.sparse_weights} tensors are stored without their zeros; all weights are {dense:.2f} MB",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if manifest.two_four:
        stages_said = harmless(", ".join(manifest.two_four))
        console.print(f"2:4     {stages_said}", markup=False, highlight=False, soft_wrap=True)
    for weakness in manifest.weaknesses:
        console.print(f"weak    {harmless(weakness.text)}", markup=False, highlight=False, soft_wrap=True)
    for table in (_stage_table(stages), _member_table(manifest), decision_table(manifest)):
        print_table(table, console)
    if manifest.decision.frontier is not None:
        print_frontier(manifest.decision.frontier, console)
    print_table(_test_table(manifest), console)
    if manifest.purifier.choice is not None:
        print_table(_choice_table(manifest.purifier.choice), console)
        for line in _in_words(manifest.purifier.choice):
            console.print(harmless(line), markup=False, highlight=False, soft_wrap=True)
    if manifest.measured:
        print_table(_measured_table(manifest), console)
    else:
        console.print("no accuracy was measured with these boundaries; s2ap-defend evaluate does", soft_wrap=True)


def _as_json(opened: ModelFile, stages: dict[str, StageSize]) -> dict[str, object]:
    return {
        "path": str(opened.path),
        "size_bytes": opened.size_bytes,
        "format_version": opened.manifest.format_version,
        "verified": True,
        "stages": {
            scope: {"nodes": size.nodes, "parameters": size.parameters, "size_bytes": size.size_bytes}
            for scope, size in stages.items()
        },
        "manifest": opened.manifest.model_dump(mode="json"),
    }


def _stage_table(stages: dict[str, StageSize]) -> Table:
    table = plain_table("stage", "nodes", "parameters", "kB", title="Stages")
    for scope, size in stages.items():
        table.add_row(foreign(scope), f"{size.nodes}", f"{size.parameters:,}", f"{size.size_bytes / 1e3:,.1f}")
    return table


def _member_table(manifest: Manifest) -> Table:
    columns = ("#", "role", "sees", "vote", "method, sparsity", "clean", "robust", "q0", "q1", "MFLOPs", "ms")
    table = plain_table(*columns, title="Members, in the order they are asked")
    table.padding = 0  # one blank between columns, so that long methods fit into 80
    for i, member in enumerate(manifest.members):
        table.add_row(
            str(i + 1),
            member.role,
            member.sees,
            f"{member.vote_weight:.3g}" if member.vote_weight else "-",
            foreign(f"{member.method} {member.sparsity:.0%}"),
            f"{member.clean_accuracy:.0%}",
            f"{member.robust_accuracy:.0%}",
            f"{member.clean_disagreement_rate:.2f}",
            f"{member.adversarial_disagreement_rate:.2f}",
            "-" if member.flops is None else f"{member.flops / 1e6:,.3g}",
            "-" if member.milliseconds is None else f"{member.milliseconds:.2f}",
        )
    return table


def _test_table(manifest: Manifest) -> Table:
    test, purifier = manifest.test, manifest.purifier
    table = plain_table("", "", title="Test")
    table.show_header = False
    table.columns[1].no_wrap = False
    table.add_row("kind", foreign(f"{test.kind}; {len(test.increments[0])} bins of {test.evidence}"))
    table.add_row("false alarms", f"alpha {test.alpha:g}, {_calibrated(test.calibration)}")
    table.add_row("evidence", asked_members(manifest.to_test()))
    if test.signals:
        table.add_row("signals", f"{', '.join(signal.name for signal in test.signals)}: counted before any member")
    if test.calibration.effective_members is not None:
        table.add_row("members", _dependence(test.calibration))
    table.add_row("purifier", _purifier(purifier))
    if manifest.precision is not None:
        table.add_row("precision", _precision(manifest))
    return table


def _precision(manifest: Manifest) -> str:
    """What classifier and members compute in, and what it changes."""
    record = manifest.precision
    if record is None:
        return "float32"
    counts = Counter(member.precision for member in manifest.members)
    members = ", ".join(f"{count} {precision}" for precision, count in sorted(counts.items()))
    text = f"classifier {record.classifier}, members: {members}".replace("_", " ")
    return text if record.comparison is None else f"{text}; {harmless(record.comparison.in_words)}"


def _purifier(purifier: PurifierDescription) -> str:
    if purifier.off:
        return "off: the image itself is classified"
    return purifier.in_words + (", convolutions in float16" if purifier.precision == "float16" else "")


def _choice_table(choice: ChoiceRecord) -> Table:
    title = f"Purifiers tried on {choice.samples} {harmless(choice.split)} images, eps {choice.eps:g}"
    table = plain_table("", "purifier", "clean", "adaptive", "p (off)", "passes", title=title)
    table.columns[1].no_wrap = False
    for i, row in enumerate(choice.rows):
        table.add_row(
            ">" if i == choice.chosen else "",
            row.in_words,
            f"{row.clean_accuracy:.1%}",
            f"{row.adaptive_accuracy:.1%}",
            "-" if row.p_against_off is None else f"{row.p_against_off:.2g}",
            str(row.network_passes),
        )
    return table


def _in_words(choice: ChoiceRecord) -> list[str]:
    """Why it was chosen, and what a robust classifier reaches without any of it."""
    if choice.reference is None:
        return [choice.reason]
    alone = choice.reference
    accuracies = f"{alone.adaptive_accuracy:.1%} under the same attack, {alone.clean_accuracy:.1%} clean"
    return [choice.reason, f"To beat: {alone.name}, {accuracies}."]


def _calibrated(record: CalibrationRecord) -> str:
    inputs = "clean inputs" if record.on == "all" else "clean inputs that are answered right"
    text = f"calibrated on {record.samples} {inputs}"
    if record.expected_false_alarm_rate is not None:
        text += f"; {record.expected_false_alarm_rate:.2%} expected of new ones"
    if record.false_alarm_bound is not None:
        text += f", at most {record.false_alarm_bound:.2%} with 95 % confidence"
    return text


def _dependence(record: CalibrationRecord) -> str:
    text = f"they say as much as {record.effective_members:.1f} independent ones"
    return text if record.correlation is None else f"correlation {record.correlation:.2f}: {text}"


def _measured_table(manifest: Manifest) -> Table:
    columns = ("attack", "eps", "samples", "bare", "label\nright", "right or\nflagged", "flagged", "asked")
    table = plain_table(*columns, title="Accuracy measured on this file")
    for row in manifest.measured:
        table.add_row(
            foreign(row.attack),
            f"{row.eps:g}",
            str(row.samples),
            f"{row.bare_accuracy:.1%}",
            f"{row.label_accuracy:.1%}",
            f"{row.robust_accuracy:.1%}",
            f"{row.flagged:.1%}",
            f"{row.members_used:.1f}",
        )
    return table
