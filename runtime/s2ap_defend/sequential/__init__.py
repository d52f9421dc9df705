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
from s2ap_defend.sequential.tables import Evidence, SequentialTest
from s2ap_defend.sequential.wald import (
    binary_tables,
    paper_levels,
    ville_boundary,
    wald_boundaries,
    wald_increments,
)

__all__ = [
    "NEAR_TIE",
    "Evidence",
    "SequentialOutcome",
    "SequentialTest",
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
