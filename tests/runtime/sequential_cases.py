"""Answers of stages, and random decisions of every kind, for tests of the numpy reference and of the graph."""

import math
from dataclasses import fields
from typing import Any

import numpy as np
from hypothesis import strategies as st

from s2ap_defend.sequential import NEAR_TIE, SequentialOutcome, SequentialTest, Signal, StageAnswers

OUTCOME = tuple(field.name for field in fields(SequentialOutcome))
ROWS = 12
COARSE = np.array([0.0, 5e-5, NEAR_TIE, 0.5, 1.0, 2.0], dtype=np.float32)


def answers(labels: list[list[int]], classes: int = 3) -> np.ndarray:
    """Log-probabilities [n, N, K] of members that say `labels[member][input]` with probability .8."""
    spread = np.full((len(labels), len(labels[0]), classes), 0.2 / (classes - 1))
    for i, row in enumerate(labels):
        for j, label in enumerate(row):
            spread[i, j, label] = 0.8
    return np.log(spread).astype(np.float32)


def said(members: list[list[int]], classifier: list[int], classes: int = 3, **more: Any) -> StageAnswers:
    """Answers of members and of the classifier that say these labels with probability .8."""
    return StageAnswers(answers([classifier], classes)[0], answers(members, classes), **more)


def sequential_test(members: int = 1, **changes: Any) -> SequentialTest:
    """A test of binary votes that agree with -1 and disagree with +1 nat, alarm at 2 and clean at -2, changed."""
    tables: dict[str, Any] = {
        "evidence": "margin",
        "edges": np.full((members, 1), NEAR_TIE),
        "increments": np.tile([-1.0, 1.0], (members, 1)),
        "lower": np.full(members, -2.0),
        "upper": np.full(members, 2.0),
        "final_threshold": math.inf,
        "waves": (members,),
        "vote_weights": np.ones(members),
    }
    return SequentialTest(**(tables | changes))


@st.composite
def cases(draw: st.DrawFn, *, signals: bool = True, raw: bool = True) -> tuple[SequentialTest, StageAnswers]:
    """A decision and the answers of its stages to ROWS inputs; coarse numbers, so that ties and exact hits occur."""
    members, classes, bins = draw(st.sampled_from([1, 2, 3, 5, 7, 9])), draw(st.integers(2, 4)), draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    opening = draw(st.integers(1, min(members, 4)))
    lower, upper = (rng.choice([0.5, 1.0, 1.5, np.inf], members) for _ in range(2))
    lower[: opening - 1] = upper[: opening - 1] = np.inf
    truncation = draw(st.sampled_from(["clean", "adversarial", "sign", "abstain"]))
    answer = draw(st.sampled_from(["robust", "mixed", "accurate"]))
    weights = rng.choice([0.0, 0.25, 0.5, 1.0, 1.0], members)
    weights[rng.integers(opening)] = 1.0
    purified = not raw or draw(st.booleans())
    of = [name for name in ("jury margin", "classifier surprise", "reconstruction error") if rng.random() < 0.3]
    if not purified and "reconstruction error" in of:
        of.remove("reconstruction error")
    first = draw(st.integers(opening, members))
    test = SequentialTest(
        evidence=draw(st.sampled_from(["margin", "surprise"])),
        edges=np.sort(rng.choice(COARSE, (members, bins - 1)), axis=1),
        increments=rng.integers(-2, 4, (members, bins)) / 2,
        lower=-lower,
        upper=upper,
        final_threshold={"adversarial": -math.inf, "sign": 0.0}.get(truncation, math.inf),
        waves=(first, members - first) if first < members else (members,),
        vote_weights=weights,
        answer=answer,
        jury_share=draw(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])),
        amplification=draw(st.sampled_from([0.5, 1.0, 2.0, 3.0])),
        opening=opening,
        await_vote=answer == "robust" and draw(st.booleans()),
        signals=tuple(
            Signal(name, np.sort(rng.choice(COARSE, bins - 1)), rng.integers(-2, 3, bins) / 2)
            for name in (of if signals else [])
        ),
        correction=draw(st.sampled_from(["correct", "correct", "keep", "reject"])),
        curtail=draw(st.sampled_from([True, True, False])),
        undecided_abstains=truncation == "abstain",
    )
    logp = -rng.choice(COARSE, (members + 2, ROWS, classes))
    popular = rng.integers(0, classes, ROWS)[:, None] == np.arange(classes)  # so that votes are won early
    follows = rng.random((members + 2, ROWS, 1)) < draw(st.sampled_from([0.0, 0.6, 0.9]))
    logp[follows & popular] = 0.0
    logp[follows & ~popular] -= 1.0
    finite = rng.random(ROWS) < 0.9
    return test, StageAnswers(
        classifier=logp[0],
        members=logp[2:],
        on_raw=None if purified else logp[1],
        reconstruction_error=rng.choice(COARSE, ROWS),
        valid=finite & (rng.random(ROWS) < 0.9),
        finite=finite,
    )
