"""The sequential test as tables, its numpy reference, and Wald's design of it."""

from s2ap_defend.sequential.reference import (
    NEAR_TIE,
    SequentialOutcome,
    base_vote_weight,
    correction_vote,
    log_likelihood_path,
    member_scores,
    run_sequential_test,
    weighted_votes,
)
from s2ap_defend.sequential.summary import asked_members
from s2ap_defend.sequential.tables import FINAL_THRESHOLDS, Evidence, SequentialTest, Truncation
from s2ap_defend.sequential.wald import (
    binary_tables,
    paper_levels,
    ville_boundary,
    wald_boundaries,
    wald_increments,
)

__all__ = [
    "FINAL_THRESHOLDS",
    "NEAR_TIE",
    "Evidence",
    "SequentialOutcome",
    "SequentialTest",
    "Truncation",
    "asked_members",
    "base_vote_weight",
    "binary_tables",
    "correction_vote",
    "log_likelihood_path",
    "member_scores",
    "paper_levels",
    "run_sequential_test",
    "ville_boundary",
    "wald_boundaries",
    "wald_increments",
    "weighted_votes",
]
