"""Figures of the purification benchmark as JSON values, and as tables in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from purification_attacks import ATTACKS, Attacked
from purification_variants import RECIPE
from report import aligned

from s2ap_defend.types import Bool
from s2ap_train.evaluate.figures import clopper_pearson
from s2ap_train.measures.paired import paired_difference

SIGNIFICANT = 0.05
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
WHITE_BOX = ("bpda", "unrolled", "straight-through", "surrogate", "apgd")


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
                "seconds": sum(found[classifier, name].seconds.values()),
            }
            for key, other in (("against_off", "off"), ("against_rho_0", f"{name}, rho 0")):
                if other in names and other != name:
                    rows[name][key] = paired_difference(worst[other], worst[name]).to_json()
    return document


def worst_case(attacked: Attacked) -> Bool:
    """Images that are right without attack and under every attack [N]."""
    return np.asarray(np.logical_and.reduce([attacked.right[attack] for attack in ATTACKS]))


def print_tables(document: Mapping[str, Any]) -> None:
    """Print all tables, and what they mean in words."""
    samples = document["preset"]["samples"]
    for classifier, rows in document["figures"].items():
        print(f"\nAccuracy of {samples} test images, purifier in front of the {classifier} classifier\n")
        header = ("purifier", *_TITLES.values(), "worst case", "against off")
        lines = [header, tuple("---" for _ in header)]
        for name, row in rows.items():
            shares = tuple(f"{row[attack]:.2f}" for attack in ATTACKS)
            low, high = row["worst_case_interval"]
            worst = f"**{row['worst_case']:.2f}** ({low:.2f}-{high:.2f})"
            lines.append((name, *shares, worst, _difference(row.get("against_off"))))
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
    """What must hold or be said, in plain words."""
    lines = []
    for classifier, rows in document["figures"].items():
        for word, sign in (("raises", 1), ("lowers", -1)):
            changed = [name for name, row in rows.items() if sign * _significant(row.get("against_off")) > 0]
            if changed:
                lines.append(
                    f"In front of the {classifier} classifier the worst case {word} beyond noise: {', '.join(changed)}."
                )
        changed = [
            f"{name} ({100 * row['against_rho_0']['difference']:+.0f} points)"
            for name, row in rows.items()
            if _significant(row.get("against_rho_0"))
        ]
        text = ", ".join(changed) if changed else "no purifier, beyond noise"
        lines.append(f"In front of the {classifier} classifier SAM changes the worst case against rho 0 of: {text}.")
        beaten = {name: row["square_alone"] for name, row in rows.items() if row["square_alone"]}
        told = ", ".join(f"{name} {count}" for name, count in beaten.items()) if beaten else "none"
        lines.append(
            f"In front of the {classifier} classifier images that Square breaks and no gradient attack: {told}."
        )
    samples, curves = document["preset"]["samples"], document["curves"]
    for name, curve in _of_curves(curves):
        zero = next((eps for eps, right in zip(curves["eps"], curve["eps"], strict=True) if right == 0), None)
        fall = (
            f"falls to 0 at eps {zero:g}" if zero is not None else f"ends at {curve['eps'][-1]:.2f}, NOT at 0: masked"
        )
        rises = np.diff(curve["steps"])
        noise = 2 * np.sqrt(0.25 / samples)
        helped = f"rises by {rises.max():.2f}" if rises.max() > noise else "never rises beyond noise"
        lines.append(f"{name}: accuracy {fall}; with more attack steps it {helped}.")
    return lines


def _print_curves(curves: Mapping[str, Any]) -> None:
    for kind, title in (("eps", "eps"), ("steps", "attack steps")):
        print(f"\nAccuracy under the strongest white-box attack over {title}, {curves['classifier']} classifier\n")
        lines = [("purifier", *(f"{point:.3g}" for point in curves[kind]))]
        lines.append(("---",) * len(lines[0]))
        lines += [(name, *(f"{right:.2f}" for right in curve[kind])) for name, curve in _of_curves(curves)]
        print("\n".join(aligned(lines)))


def _of_curves(curves: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, curve) for name, curve in curves.items() if isinstance(curve, Mapping)]


def _significant(difference: Mapping[str, Any] | None) -> float:
    """The difference, 0 where it may be noise."""
    if difference is None or difference["p_value"] >= SIGNIFICANT:
        return 0.0
    return float(difference["difference"])


def _difference(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return ""
    low, high = difference["interval"]
    mark = "" if difference["p_value"] >= SIGNIFICANT else " *"
    return f"{100 * difference['difference']:+.0f} ({100 * low:+.0f} to {100 * high:+.0f}){mark}"


SHOWN_CURVES = ("off", RECIPE, "wide")
"""Purifiers whose curves are measured."""
