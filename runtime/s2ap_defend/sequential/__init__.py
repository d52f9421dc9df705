"""The decision as tables, its numpy reference, and Wald's design of the sequential test."""

from s2ap_defend.sequential.jury import mixed_label, settled, voted_label
from s2ap_defend.sequential.path import NEAR_TIE, Path, member_scores
from s2ap_defend.sequential.reference import (
    SequentialOutcome,
    StageAnswers,
    accepted_raw,
    first_answers,
    log_likelihood_path,
    run_sequential_test,
    signal_scores,
)
from s2ap_defend.sequential.single import LARGEST, SinglePath, SingleTables
from s2ap_defend.sequential.summary import asked_members
from s2ap_defend.sequential.tables import (
    AMPLIFICATION_UNIT,
    FINAL_THRESHOLDS,
    LARGEST_AMPLIFICATION,
    Answer,
    Correction,
    Evidence,
    SequentialTest,
    Signal,
    SignalName,
    Truncation,
    tables_in_graph,
)
from s2ap_defend.sequential.wald import (
    binary_tables,
    paper_levels,
    ville_boundary,
    wald_boundaries,
    wald_increments,
)

__all__ = [
    "AMPLIFICATION_UNIT",
    "FINAL_THRESHOLDS",
    "LARGEST",
    "LARGEST_AMPLIFICATION",
    "NEAR_TIE",
    "Answer",
    "Correction",
    "Evidence",
    "Path",
    "SequentialOutcome",
    "SequentialTest",
    "Signal",
    "SignalName",
    "SinglePath",
    "SingleTables",
    "StageAnswers",
    "Truncation",
    "accepted_raw",
    "asked_members",
    "binary_tables",
    "first_answers",
    "log_likelihood_path",
    "member_scores",
    "mixed_label",
    "paper_levels",
    "run_sequential_test",
    "settled",
    "signal_scores",
    "tables_in_graph",
    "ville_boundary",
    "voted_label",
    "wald_boundaries",
    "wald_increments",
]
