"""Figures of the purification benchmark as JSON values, and as tables in Markdown.

python benchmarks/purification_tables.py FILE prints those of a kept file of figures.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from purification_attacks import ATTACKS, WHITE_BOX, Attacked
from purification_variants import RECIPE
from report import aligned

from s2ap_defend.types import Bool
from s2ap_train.statistics.figures import clopper_pearson
from s2ap_train.statistics.paired import NOISE, paired_difference

_TITLES = {
    "clean": "clean",
    "oblivious": "oblivious",
    "bpda": "BPDA",
    "unrolled": "unrolled",
    "straight-through": "straight",
    "surrogate": "J-free",
    "apgd": "APGD",
    "square": "Square",
    "transfer": "transfer",
}


def figures(
    found: Mapping[tuple[str, str], Attacked], names: Sequence[str], classifiers: Sequence[str]
) -> dict[str, Any]:
    """Accuracy by classifier and purifier under each attack and in the worst case per image, paired with others."""
    document: dict[str, Any] = {}
    for classifier in classifiers:
        rows = document[classifier] = {}
        worst = {name: worst_case(found[classifier, name]) for name in names}
        for name in names:
            right = found[classifier, name].right
            white_box = np.logical_and.reduce([right[attack] for attack in WHITE_BOX])
            rows[name] = {
                **{attack: float(right[attack].mean()) for attack in ATTACKS},
                "worst_case": float(worst[name].mean()),
                "worst_case_interval": clopper_pearson(int(worst[name].sum()), len(worst[name])),
                "square_alone": int((white_box & right["clean"] & ~right["square"]).sum()),
                "square_finds": _found_by_square(right, white_box) if name == "off" else None,
                "seconds": sum(found[classifier, name].seconds.values()),
            }
            for key, other in (("against_off", "off"), ("against_rho_0", f"{name}, rho 0")):
                if other in names and other != name:
                    rows[name][key] = paired_difference(worst[other], worst[name]).to_json()
    return document


def _found_by_square(right: Mapping[str, Bool], white_box: Bool) -> float | None:
    """Of the images that gradient attacks break, the share that Square breaks, too; None without any."""
    broken = right["clean"] & ~white_box
    return float((~right["square"][broken]).mean()) if broken.any() else None


def worst_case(attacked: Attacked) -> Bool:
    """Images that are right without attack and under every attack [N]."""
    return np.asarray(np.logical_and.reduce([attacked.right[attack] for attack in ATTACKS]))


def print_tables(document: Mapping[str, Any]) -> None:
    """Print all tables, and what they mean in words."""
    samples = document["samples"]
    for classifier, rows in document["figures"].items():
        print(f"\nAccuracy of {samples} test images, purifier in front of the {classifier} classifier\n")
        header = ("purifier", *_TITLES.values(), "worst case", "against off")
        lines = [header, tuple("---" for _ in header)]
        stands = significant(rows, "against_off")
        for name, row in rows.items():
            shares = tuple(f"{row[attack]:.2f}" for attack in ATTACKS)
            low, high = row["worst_case_interval"]
            worst = f"**{row['worst_case']:.2f}** ({low:.2f}-{high:.2f})"
            lines.append((name, *shares, worst, _difference(row.get("against_off"), name in stands)))
        print("\n".join(aligned(lines)))
    print("\nCost of one image\n")
    lines = [("purifier", "passes", "depth", "ms, batch 1", "ms, batch 64", "by"), ("---",) * 6]
    for name, row in document["cost"].items():
        times = (f"{row['ms_1']:.3f}", f"{row['ms_64']:.3f}")
        lines.append((name, str(row["work"]), str(row["depth"]), *times, row["by"]))
    print("\n".join(aligned(lines)))
    _print_curves(document["curves"])
    print("\n" + "\n".join(f"- {line}" for line in findings(document)))


def findings(document: Mapping[str, Any]) -> list[str]:
    """What must hold or be said, in plain words; 'beyond noise' is McNemar's test, Holm-corrected over the table."""
    lines = []
    for classifier, rows in document["figures"].items():
        where = f"In front of the {classifier} classifier"
        for word, sign in (("raise", 1), ("lower", -1)):
            changed = [name for name, points in significant(rows, "against_off").items() if sign * points > 0]
            if changed:
                lines.append(f"{where} these {word} the worst case against off beyond noise: {'; '.join(changed)}.")
        compared = [name for name, row in rows.items() if "against_rho_0" in row]
        if compared:
            changed = [f"{name} ({points:+.0f} points)" for name, points in significant(rows, "against_rho_0").items()]
            said = "; ".join(changed) if changed else "none beyond noise"
            lines.append(f"{where} SAM changes the worst case against rho 0, of {'; '.join(compared)}: {said}.")
        beaten = [f"{name} {row['square_alone']}" for name, row in rows.items() if row["square_alone"]]
        power = rows["off"]["square_finds"] if "off" in rows else None
        found = "" if power is None else f" (alone, without a purifier, it finds {power:.0%} of what gradients find)"
        lines.append(f"{where} images that Square breaks and no gradient does{found}: {'; '.join(beaten) or 'none'}.")
    curves = document["curves"]
    for name, curve in _of_curves(curves):
        points = zip(curves["eps"], curve["eps"], curve["noise"], strict=True)
        zero = next(((eps, noise) for eps, right, noise in points if right == 0), None)
        fall = f"ends at {curve['eps'][-1]:.2f}, NOT at 0: masked, or the curve is too short"
        if zero is not None:
            fall = f"falls to 0 at eps {zero[0]:g}, where random noise leaves {zero[1]:.2f}"
        test = f"at most {curve['helped']} images survive only the most steps, p {curve['helped_p_value']:.2g}"
        helped = f"helps the defence beyond noise: MASKED ({test})"
        if curve["helped_p_value"] >= NOISE:
            helped = f"does not help the defence ({test})"
        lines.append(f"{name}: accuracy {fall}; a longer attack {helped}.")
    return lines


def significant(rows: Mapping[str, Any], key: str) -> dict[str, float]:
    """Differences in points of the rows whose test stands after Holm's correction over all of them (Holm 1979)."""
    tests = sorted((row[key]["p_value"], name) for name, row in rows.items() if key in row)
    found = {}
    for place, (p_value, name) in enumerate(tests):
        if p_value * (len(tests) - place) >= NOISE:
            break
        found[name] = 100 * rows[name][key]["difference"]
    return found


def _print_curves(curves: Mapping[str, Any]) -> None:
    for kind, title in (("eps", "eps"), ("steps", "attack steps")):
        print(f"\nAccuracy under five descents in turn over {title}, {curves['classifier']} classifier\n")
        lines = [("purifier", *(f"{point:.3g}" for point in curves[kind]))]
        lines.append(("---",) * len(lines[0]))
        for name, curve in _of_curves(curves):
            lines.append((name, *(f"{right:.2f}" for right in curve[kind])))
            if kind == "eps":
                lines.append((f"{name}, random noise", *(f"{right:.2f}" for right in curve["noise"])))
        print("\n".join(aligned(lines)))


def _of_curves(curves: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, curve) for name, curve in curves.items() if isinstance(curve, Mapping)]


def _difference(difference: Mapping[str, Any] | None, stands: bool) -> str:
    if difference is None:
        return ""
    low, high = difference["interval"]
    points = f"{100 * difference['difference']:+.0f} ({100 * low:+.0f} to {100 * high:+.0f})"
    return f"{points} *" if stands else points


SHOWN_CURVES = ("off", RECIPE)
"""Purifiers whose curves are measured."""

if __name__ == "__main__":
    print_tables(json.loads(Path(sys.argv[1]).read_text()))
