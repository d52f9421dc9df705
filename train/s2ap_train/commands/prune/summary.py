"""The closing table of `prune`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from s2ap_defend.tables import plain_table, print_table


def print_summary(metrics: Mapping[str, Any], console: Console) -> None:
    """Print what a run measured: before, the bare mask, after; and how stable and how sharp the mask is."""
    table = plain_table("", "clean", "FGSM", "PGD", "worst case")
    for name, key in (("dense", "before"), ("mask, before fine-tuning", "mask"), ("pruned", "after")):
        found = metrics[key]
        if found is not None:
            shares = (found[f"{what}_accuracy"] for what in ("clean", "fgsm", "pgd", "robust"))
            table.add_row(name, *(f"{share:.1%}" for share in shares))
    print_table(table, console)
    for line in _lines(metrics):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(metrics: Mapping[str, Any]) -> list[str]:
    attack = metrics["attack"]
    lines = [
        f"{attack['samples']} {attack['split']} images, l_inf eps {attack['eps']:.4g}, {attack['name']} "
        f"({attack['steps']} steps, {attack['restarts']} restarts each), seed {attack['seed']}",
        f"sparsity {metrics['sparsity']:.1%} of the weights, FLOPs {metrics['flops'] / metrics['flops_dense']:.1%} of "
        f"the dense network's, {metrics['parameters']:,} parameters",
    ]
    if metrics["difference"] is not None:
        robust = metrics["difference"]["robust"]
        lines.append(
            f"robust accuracy after - before: {robust['difference']:+.1%} "
            f"(95 % interval {robust['interval'][0]:+.1%} to {robust['interval'][1]:+.1%}, paired)"
        )
    if metrics["sharpness"] is not None:
        lines.append(f"sharpness {metrics['sharpness']:.3f}")
    if metrics["hessian_eigenvalue"] is not None and metrics["hessian_eigenvalue_relative"] is not None:
        lines.append(
            f"largest surrogate eigenvalue {metrics['hessian_eigenvalue']:.3g} "
            f"({metrics['hessian_eigenvalue_relative']:.3g} in units of the scores' norms)"
        )
    lines += [f"{name} is left out, the network does not allow it: {why}" for name, why in metrics["left_out"].items()]
    if metrics["flip_rate"] is not None:
        lines.append(
            f"S2AP changed {metrics['flip_rate']:.2%} of the kept weights a step, at radius {metrics['radius']:.3g}"
        )
    if metrics["method"] == "s2ap" and not metrics["flip_rate"]:
        lines.append("warning: S2AP changed no mask, so this was its base method; raise gamma or the epochs")
    if metrics["autoattack"] is not None:
        hardest = metrics["autoattack"]
        which = ", ".join(hardest["attacks"])
        lines.append(f"AutoAttack ({which}), {hardest['samples']} images: {hardest['robust_accuracy']:.1%}")
    if metrics["transferability"] is not None:
        lines += _carried(metrics["transferability"])
    if metrics["seconds_mask_search"] is not None:
        lines.append(f"pruning took {metrics['seconds_mask_search']:.1f} s")
    failed = [check for check in (metrics["sensitivity"] or {}).get("checks", []) if not check["passed"]]
    lines += [f"CHECK FAILED: {check['name']}: {check['meaning']}" for check in failed]
    return lines


def _carried(transferability: Mapping[str, Any]) -> list[str]:
    """Attacks made on one network and judged by another, both directions."""
    names = transferability["models"]
    rates = [
        f"{source} -> {target} {rate:.0%}"
        for source, row in zip(names, transferability["rate"], strict=True)
        for target, rate in zip(names, row, strict=True)
        if source != target and rate is not None
    ]
    return [f"attacks that carry over, of images that both classify: {', '.join(rates)}"] if rates else []
