"""Answers of members, and random sequential tests of every kind, for tests of the numpy reference and of the graph."""

import math
from dataclasses import fields

import numpy as np
from hypothesis import strategies as st

from s2ap_defend.sequential import NEAR_TIE, SequentialOutcome, SequentialTest

OUTCOME = tuple(field.name for field in fields(SequentialOutcome))
ROWS = 12


def answers(labels: list[list[int]], classes: int = 3) -> np.ndarray:
    """Log-probabilities [n, N, K] of members that say `labels[member][input]` with probability .8."""
    spread = np.full((len(labels), len(labels[0]), classes), 0.2 / (classes - 1))
    for i, row in enumerate(labels):
        for j, label in enumerate(row):
            spread[i, j, label] = 0.8
    return np.log(spread).astype(np.float32)


@st.composite
def cases(draw: st.DrawFn) -> tuple[SequentialTest, np.ndarray, np.ndarray]:
    """A test, member answers [n, ROWS, K] and base labels [ROWS]; coarse numbers, so that ties and exact hits occur."""
    members, classes, bins = draw(st.sampled_from([1, 2, 3, 5, 7, 9])), draw(st.integers(2, 4)), draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = np.array([0.0, 5e-5, NEAR_TIE, 0.5, 1.0, 2.0], dtype=np.float32)
    lower, upper = (rng.choice([0.5, 1.0, 1.5, np.inf], members) for _ in range(2))
    truncation = draw(st.sampled_from(["clean", "adversarial", "sign", "abstain"]))
    correct = draw(st.sampled_from([True, True, True, False]))
    weights = rng.choice([0.0, 0.25, 1 / 3, 0.7, 1.0], draw(st.integers(1, 3)))
    test = SequentialTest(
        evidence=draw(st.sampled_from(["margin", "surprise"])),
        edges=np.sort(rng.choice(scores, (members, bins - 1)), axis=1),
        increments=rng.integers(-2, 4, (members, bins)) / 2,
        lower=-lower,
        upper=upper,
        final_threshold={"adversarial": -math.inf, "sign": 0.0}.get(truncation, math.inf),
        vote_members=draw(st.sampled_from([0, members // 2, members - 1, members])),
        waves=(members,),
        base_vote_weights=weights,
        base_vote_edges=np.sort(rng.integers(-4, 5, len(weights) - 1) / 2),
        correct=correct,
        curtail=draw(st.sampled_from([True, True, False])),
        undecided_abstains=truncation == "abstain",
    )
    logp = -rng.choice(scores, (members, ROWS, classes))
    popular = rng.integers(0, classes, ROWS)[:, None] == np.arange(classes)  # so that votes are won early
    follows = rng.random((members, ROWS, 1)) < draw(st.sampled_from([0.0, 0.6, 0.9]))
    logp[follows & popular] = 0.0
    logp[follows & ~popular] -= 1.0
    return test, logp, rng.integers(0, classes, ROWS)
