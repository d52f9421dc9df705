"""The sequential test as tables, its numpy reference, and Wald's design of it."""

from s2ap_defend.sequential.reference import (
    NEAR_TIE,
    SequentialOutcome,
    correction_vote,
    member_scores,
    run_sequential_test,
)
from s2ap_defend.sequential.tables import Evidence, SequentialTest
from s2ap_defend.sequential.wald import wald_boundaries, wald_increments

__all__ = [
    "NEAR_TIE",
    "Evidence",
    "SequentialOutcome",
    "SequentialTest",
    "correction_vote",
    "member_scores",
    "run_sequential_test",
    "wald_boundaries",
    "wald_increments",
]
