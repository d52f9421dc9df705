"""`s2ap-defend plan`: error rates and expected members of a test, before anything is trained."""

from dataclasses import asdict
from typing import get_args

import click
import orjson
from rich.console import Console
from rich.table import Table

from s2ap_defend.sequential.approximations import wald_acceptance, wald_bounds, wald_members
from s2ap_defend.sequential.design import (
    Boundary,
    Design,
    check_feasible,
    operating_characteristics,
    shortest,
)
from s2ap_defend.sequential.reachable import OperatingPoint
from s2ap_defend.sequential.tables import Truncation
from s2ap_defend.tables import plain_table, print_table

STEPS = 4
"""Intervals between q0 and q1 in the printed curve."""

NOTE = (
    "Computed for members that vote independently. Members trained on one data set err together, so these are design "
    "values until `s2ap-defend calibrate` measures false alarms on clean inputs."
)


@click.command()
@click.option("--q0", type=float, required=True, help="Rate at which a member disagrees on clean inputs.")
@click.option("--q1", type=float, required=True, help="The same on adversarial inputs; larger than q0.")
@click.option("--alpha", type=float, default=0.05, show_default=True, help="False-alarm rate wanted.")
@click.option("--beta", type=float, default=0.05, show_default=True, help="Miss rate wanted.")
@click.option("--n-max", type=int, default=24, show_default=True, help="Members there are.")
@click.option(
    "--truncation",
    type=click.Choice(get_args(Truncation)),
    default="sign",
    show_default=True,
    help="Verdict on inputs that are undecided after the last member.",
)
@click.option("--min-accept", type=int, default=1, show_default=True, help="Members asked before 'clean' may be said.")
@click.option(
    "--boundary",
    type=click.Choice(get_args(Boundary)),
    default="wald",
    show_default=True,
    help="wald: ln((1 - beta) / alpha); ville: ln(1 / alpha), which holds at every stopping time.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def plan(
    q0: float,
    q1: float,
    alpha: float,
    beta: float,
    n_max: int,
    truncation: Truncation,
    min_accept: int,
    boundary: Boundary,
    as_json: bool,
) -> None:
    """Show exact error rates and expected members of a sequential test; refuse one that can never decide."""
    design = Design(q0, q1, alpha, beta, n_max, truncation, min_accept, boundary)
    if not as_json:
        check_feasible(design)
    rates = _rates(design)
    curve = list(zip(rates, operating_characteristics(design, rates), strict=True))
    if as_json:
        click.echo(orjson.dumps(_as_json(design, curve), option=orjson.OPT_INDENT_2).decode())
        check_feasible(design)
        return
    needed, console = shortest(design), Console()
    print_table(_error_table(design, curve[0][1], curve[-1][1]), console)
    print_table(_curve_table(design, curve), console)
    console.print(
        f"'clean' takes {needed.clean} agreeing members at least, 'adversarial' {needed.adversarial} disagreeing ones; "
        f"boundaries {design.boundary}, undecided after the last member: {design.truncation}.\n{NOTE}",
        markup=False,
        highlight=False,
    )


def _rates(design: Design) -> list[float]:
    inner = [design.q0 + (design.q1 - design.q0) * step / STEPS for step in range(1, STEPS)]
    return [design.q0, *inner, design.q1]


def _as_json(design: Design, curve: list[tuple[float, OperatingPoint]]) -> dict[str, object]:
    clean, adversarial = curve[0][1], curve[-1][1]
    needed = shortest(design)
    fpr_bound, fnr_bound = wald_bounds(design)
    return {
        **asdict(design),
        "feasible": needed.n_max <= design.n_max,
        "smallest_n_max": needed.n_max,
        "agreeing_members": needed.clean,
        "disagreeing_members": needed.adversarial,
        "fpr": clean.adversarial,
        "fnr": _missed(adversarial),
        "asn_clean": clean.mean_members,
        "asn_adversarial": adversarial.mean_members,
        "undecided_clean": clean.undecided,
        "undecided_adversarial": adversarial.undecided,
        "truncated_clean": clean.truncated,
        "truncated_adversarial": adversarial.truncated,
        "wald": {
            "fpr": 1.0 - wald_acceptance(design, design.q0),
            "fnr": wald_acceptance(design, design.q1),
            "fpr_bound": fpr_bound,
            "fnr_bound": fnr_bound,
            "asn_clean": wald_members(design, design.q0),
            "asn_adversarial": wald_members(design, design.q1),
        },
        "curve": [
            {
                "p": p,
                "adversarial": point.adversarial,
                "clean": point.clean,
                "undecided": point.undecided,
                "truncated": point.truncated,
                "asn": point.mean_members,
                "wald_asn": wald_members(design, p),
            }
            for p, point in curve
        ],
        "note": NOTE,
    }


def _missed(adversarial: OperatingPoint) -> float:
    """P(not flagged | adversarial): accepted by a boundary, by truncation, or left without a verdict."""
    return adversarial.clean + adversarial.undecided


def _error_table(design: Design, clean: OperatingPoint, adversarial: OperatingPoint) -> Table:
    table = plain_table(
        "error rates", "exact", "wanted", "Wald's", "Wald's bound", title=f"At most {design.n_max} members"
    )
    fpr_bound, fnr_bound = wald_bounds(design)
    approximation = 1.0 - wald_acceptance(design, design.q0), wald_acceptance(design, design.q1)
    rows = (
        ("clean inputs flagged", clean.adversarial, design.alpha, approximation[0], fpr_bound),
        ("adversarial inputs not flagged", _missed(adversarial), design.beta, approximation[1], fnr_bound),
    )
    for name, exact, wanted, approximate, bound in rows:
        table.add_row(name, f"{exact:.4f}", f"{wanted:g}", f"{approximate:.4f}", f"{bound:.4f}")
    return table


def _curve_table(design: Design, curve: list[tuple[float, OperatingPoint]]) -> Table:
    table = plain_table(
        "members disagree", "flagged", "clean", "no verdict", "truncated", "members", "Wald's", title="Verdicts"
    )
    names = {0: " (clean)", len(curve) - 1: " (adversarial)"}
    for i, (p, point) in enumerate(curve):
        rates = (point.adversarial, point.clean, point.undecided, point.truncated)
        table.add_row(
            f"{p:.4g}{names.get(i, '')}",
            *(f"{rate:.4f}" for rate in rates),
            f"{point.mean_members:.2f}",
            f"{wald_members(design, p):.2f}",
        )
    return table
