"""The tables of a defended file next to what a user would pick instead."""

from collections.abc import Mapping
from typing import Any

from report import aligned

ONE_BY_ONE = "this file, staged, one by one"
"""The system whose time is that of the file next to serial protocols."""


def print_tables(document: Mapping[str, Any]) -> None:
    """Print the systems, and the file against its peers.

    Args:
        document: The figures, as `peers.py` writes them.
    """
    header = ("system", "runs of a network", "x bare", "x file", "attacked, x file", "clean right", "flagged")
    header += ("PGD: label right", "right or flagged", "DeepFool: label right", "right or flagged")
    lines: list[tuple[str, ...]] = [header, ("---", *["---:"] * (len(header) - 1))]
    for name, figure in document["systems"].items():
        clean, *attacked = (figure["images"][of] for of in ("clean", "pgd", "deepfool"))
        under = [f"{one[key]:.1%}" for one in attacked for key in ("label_right", "right_or_flagged")]
        multiples = (figure["times_bare"]["clean"], figure["times_file"]["clean"], figure["times_file"]["pgd"])
        shares = (f"{clean['label_right']:.1%}", f"{clean['flagged']:.1%}", *under)
        lines.append((name, f"{clean['evaluations']:.1f}", *map(_multiple, multiples), *shares))
    print(*aligned(lines), sep="\n")
    file = document["systems"][ONE_BY_ONE]
    for peer, found in document["file_against"].items():
        peers = document["systems"][peer]
        faster = [peers["times_bare"][of] / file["times_bare"][of] for of in ("clean", "pgd")]
        text = "; ".join(
            f"{of}: +{one['gained']} -{one['lost']} of {document['fooled'][of]}, p {one['p_value']:.2g}"
            for of, one in found.items()
        )
        print(
            f"\nThe file, one by one, is {faster[0]:.3g} times as fast as {peer} on clean images and {faster[1]:.3g} "
            f"times on attacked ones. Right or flagged of what fooled the bare classifier, file against it: {text}"
        )
    attacks = [row for row in document["adaptive"] if row["eps"] > 0]
    if attacks:
        worst = min(attacks, key=lambda row: (row["label_accuracy"], row["robust_accuracy"]))
        print(
            f"\nThe file under the worst attack that knows it ({worst['attack']}): {worst['label_accuracy']:.1%} "
            f"labels right, {worst['robust_accuracy']:.1%} right or flagged."
        )


def _multiple(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
