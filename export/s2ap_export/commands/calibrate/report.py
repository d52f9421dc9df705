"""What `s2ap-defend calibrate` says, as a table and as JSON."""

from typing import Any

from rich.console import Console

from s2ap_defend.sequential import asked_members
from s2ap_defend.tables import plain_table, print_table
from s2ap_export.commands.calibrate.recalibration import Recalibration
from s2ap_train.calibration.boundaries import CONFIDENCE

_COUNTED = {"correct": "clean inputs that are answered right", "all": "clean inputs, right or wrong"}


def to_json(result: Recalibration) -> dict[str, Any]:
    """All figures; rates in [0, 1], boundaries in nats."""
    record = result.record
    return {
        "kind": result.tables.kind,
        "alpha": result.tables.alpha,
        "calibrate_on": record.on,
        "inputs": result.inputs,
        "samples": record.samples,
        "first_accuracy": result.first_accuracy,
        "old": {
            "alpha": result.old_alpha,
            "boundary": result.old_boundary,
            "false_alarm_rate": result.old_rate,
            "false_alarm_rate_interval": list(result.old_rate_interval),
        },
        "new": {
            "boundary": result.new_boundary,
            "expected_false_alarm_rate": record.expected_false_alarm_rate,
            "false_alarm_bound": record.false_alarm_bound,
            "cross_validated_rate": result.cross_validated_rate,
            "flagged": result.flagged,
            "abstained": result.abstained or 0.0,
            "members_used": result.members_used,
        },
        "correlation": record.correlation,
        "effective_members": record.effective_members,
        "members": len(result.tables.increments),
        "members_left_out": result.left_out,
    }


def print_report(result: Recalibration, console: Console) -> None:
    """The figures as a table, with how to read them."""
    record = result.record
    table = plain_table("", "before", "now")
    old = "never" if result.old_boundary is None else f"{result.old_boundary:.3f} nats"
    table.add_row("alarm boundary", old, f"{result.new_boundary:.3f} nats")
    table.add_row("alpha", f"{result.old_alpha:g}", f"{result.tables.alpha:g}")
    low, high = result.old_rate_interval
    table.add_row("false alarms, measured", f"{result.old_rate:.2%} ({low:.2%} to {high:.2%})", "")
    table.add_row("false alarms, expected", "", f"{record.expected_false_alarm_rate:.2%}")
    table.add_row(f"{CONFIDENCE:.0%} bound", "", f"{record.false_alarm_bound:.2%}")
    checked = "too few inputs" if result.cross_validated_rate is None else f"{result.cross_validated_rate:.2%}"
    table.add_row("cross-validated", "", checked)
    table.add_row("members asked", "", f"{result.members_used:.2f} of {len(result.tables.increments)}")
    print_table(table, console)
    lines = [f"{record.samples} of {result.inputs} images counted: {_COUNTED[record.on]}."]
    if result.first_accuracy is not None:
        lines.append(
            f"{result.first_accuracy:.1%} are answered right; of all {result.inputs} images {result.flagged:.2%} "
            "are flagged now."
        )
    if result.abstained is not None:
        lines.append(f"Of all {result.inputs} images {result.abstained:.2%} get no answer now (the test abstains).")
    lines.append(asked_members(result.test))
    lines.append(_correlation(result))
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _correlation(result: Recalibration) -> str:
    record, members = result.record, len(result.tables.increments)
    if record.correlation is None or record.effective_members is None:
        return (
            f"Correlation unknown: fewer than two of {members} members disagree with some of the images, but not all."
        )
    left = f" ({result.left_out} that never or always disagree left out)" if result.left_out else ""
    return (
        f"Members' disagreements correlate {record.correlation:.2f} on average: {members - result.left_out} "
        f"members{left} say as much as {record.effective_members:.1f} independent ones."
    )
