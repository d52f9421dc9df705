"""Manifests as JSON objects, to be changed by tests."""

from typing import Any


def row_data(**changes: object) -> dict[str, Any]:
    """One row of the table of purifiers: the one of `manifest_data`, changed."""
    return {
        "mode": "full",
        "norm": "linf",
        "sigmas": [0.3, 0.2],
        "radius": 0.1,
        "steps": 2,
        "step_size": 0.7,
        "rho": 0.2,
        "reuse_ascent": False,
        "bank_size": 2,
        "bank_seed": 0,
        "clean_accuracy": 0.95,
        "oblivious_accuracy": 0.6,
        "gradient_accuracy": 0.55,
        "ungraded": {"bpda": 1, "surrogate": 0, "square": 2},
        "adaptive_accuracy": 0.5,
        "adaptive_interval": [0.4, 0.6],
        "p_against_off": 0.25,
        "p_against_rho_0": 1.0,
        "network_passes": 16,
        "milliseconds": 0.5,
    } | changes


def choice_data() -> dict[str, Any]:
    off = row_data(steps=0, sigmas=[], p_against_off=None, p_against_rho_0=None, network_passes=0, milliseconds=0.0)
    return {
        "by": "recipe",
        "chosen": 1,
        "reason": "It is the recipe's.",
        "split": "validation",
        "samples": 100,
        "eps": 0.15,
        "seed": 0,
        "attack": "gradients of all steps",
        "defended": "the classifier and 1 member",
        "reference": {"name": "the pruned classifier alone", "clean_accuracy": 0.96, "adaptive_accuracy": 0.52},
        "rows": [off, row_data(), row_data(rho=0.0, p_against_rho_0=None, network_passes=8)],
    }


def decision_data(**changes: object) -> dict[str, Any]:
    """The decision of `manifest_data`, changed."""
    chosen = {"answer": "mixed", "jury_share": 0.75, "amplification": 2.0, "purify": "always"}
    row = chosen | {
        "juror_weight": 1.0,
        "opening": 1,
        "jurors_see": "raw",
        "sensors_see": "purified",
        "signals": [],
        "min_accept": 1,
        "clean_accuracy": 0.95,
        "clean_flagged": 0.04,
        "label_accuracy": 0.7,
        "robust_accuracy": 0.8,
        "members_used": 1.0,
        "cost": 2.5,
    }
    frontier = {
        "split": "fit",
        "samples": 100,
        "eps": 0.15,
        "seed": 0,
        "attack": "joint, for a wrong label",
        "label_cost": 0.01,
        "robust_classifier": [0.94, 0.69],
        "chosen": 0,
        "reason": "It is the most accurate within the label cost.",
        "rows": [row, row | {"answer": "robust", "clean_accuracy": 0.93}],
    }
    return chosen | {"frontier": frontier} | changes


def manifest_data() -> dict[str, Any]:
    member = {
        "role": "juror",
        "sees": "raw",
        "vote_weight": 1.0,
        "method": "s2ap",
        "sparsity": 0.5,
        "adversarially_trained": True,
        "seeds": {"initialisation": 1, "mask": 2, "order": 3},
        "flops": 1000,
        "parameters": None,
        "milliseconds": 0.25,
        "clean_disagreement_rate": 0.05,
        "adversarial_disagreement_rate": 0.6,
        "clean_accuracy": 0.97,
        "robust_accuracy": 0.6,
    }
    return {
        "format_version": 4,
        "input": {"channels": 1, "height": 8, "width": 8},
        "classes": ["0", "1"],
        "members": [member],
        "decision": decision_data(),
        "test": {
            "kind": "wald",
            "evidence": "margin",
            "edges": [[1e-4]],
            "increments": [[-0.8, 2.4]],
            "lower": [None],
            "upper": [2.9],
            "truncation": "clean",
            "correction": "correct",
            "curtailed": True,
            "opening": 1,
            "await_vote": False,
            "signals": [],
            "waves": [1],
            "alpha": 0.05,
            "beta": 0.05,
            "calibration": {
                "on": "all",
                "samples": 400,
                "expected_false_alarm_rate": 0.05,
                "false_alarm_bound": 0.07,
                "correlation": 0.5,
                "effective_members": 2.0,
                "reference_ratios": [-1.5, 0.0, 2.0],
            },
        },
        "purifier": {
            "mode": "full",
            "norm": "linf",
            "sigmas": [0.3, 0.2],
            "radius": 0.1,
            "steps": 2,
            "step_size": 0.7,
            "rho": 0.2,
            "reuse_ascent": False,
            "bank_size": 2,
            "bank_seed": 0,
            "bank_sha256": "0" * 64,
            "precision": "float32",
            "choice": choice_data(),
        },
        "measured": [],
        "provenance": {
            "recipe": "digits",
            "seed": 0,
            "data": "digits",
            "classifier": "s2ap",
            "versions": {"torch": "2"},
            "git_commit": None,
        },
        "weights_sha256": "0" * 64,
        "graph_sha256": "0" * 64,
    }
