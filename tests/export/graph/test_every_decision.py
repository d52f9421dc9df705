"""The composed graph is the numpy reference, bit for bit, under decisions of every kind.

Every answer meets every policy of purification and every pair of vote weights at any two members (an orthogonal array);
waves, evidence, opening and what ends a test take turns, in periods that have no common divisor.
"""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from tests.export.graph.spoken_images import OUTCOME, Case, images, model_of, session, verdicts
from tests.runtime.sequential_cases import sequential_test

from s2ap_defend.decision_record import Purify, Sees
from s2ap_defend.sequential import Answer, Signal, StageAnswers, run_sequential_test
from s2ap_defend.types import Verdicts

ANSWERS: list[Answer] = ["robust", "mixed", "accurate"]
POLICIES: list[Purify] = ["always", "suspicious", "off"]
MEMBERS, CLASSES, ROWS = 4, 3, 40
ENDS: list[dict[str, Any]] = [
    {},
    {"curtail": False},
    {"correction": "reject"},
    {"correction": "keep"},
    {"final_threshold": 0.0},
    {"undecided_abstains": True, "curtail": False},
]
SPLITS = [np.flatnonzero([True, *cuts, True]) for cuts in product([False, True], repeat=MEMBERS - 1)]
WAVES = [tuple(np.diff(places).tolist()) for places in SPLITS]


def vote_weights(i: int, answer: Answer) -> np.ndarray:
    """Row i of an orthogonal array of 9 rows: any two members have every pair of weights 0, .5 and 1."""
    a, b = divmod(i % 9, 3)
    return (
        np.array([a, b, (a + b) % 3, (a + 2 * b) % 3]) / 2
        if i % 9
        else np.full(4, 0.0 if answer == "accurate" else 1.0)
    )


def log_probabilities(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Log-probabilities float32 [..., K]; of every second input they are few, so that they tie."""
    logs = np.log(rng.dirichlet(np.full(CLASSES, 0.5), shape)).clip(-60.0, 0.0).astype(np.float32)
    few = np.log(rng.permuted(np.broadcast_to([0.5, 0.25, 0.25], logs.shape), axis=-1)).astype(np.float32)
    return np.where((np.arange(shape[-1]) % 2 == 0)[:, None], few, logs)


def case(answer: Answer, purify: Purify, i: int) -> Case:
    """One decision, and what the stages of its file say."""
    rng, weights = np.random.default_rng(i), vote_weights(i, answer)
    opening = 1 + i % 2 if answer == "accurate" else 1 + int(np.flatnonzero(weights)[0])
    waves = [waves for waves in WAVES if waves[0] >= opening]
    boundaries = rng.choice([0.5, 1.0, 2.0, math.inf], (2, MEMBERS))
    boundaries[:, : opening - 1] = math.inf
    names = ["jury margin", "classifier surprise"][: i % 3]
    ends = ENDS[(i + i // 6) % 6] if weights.any() else {"correction": "reject"}
    test = sequential_test(
        MEMBERS,
        **{
            "evidence": ["margin", "surprise"][i % 2],
            "edges": np.sort(rng.choice([0.0, 1e-4, 0.7, 1.4], (MEMBERS, 2)).astype(np.float32), axis=1),
            "increments": rng.normal(0.2, 1.0, (MEMBERS, 3)),
            "lower": -boundaries[0],
            "upper": boundaries[1],
            "waves": waves[i % len(waves)],
            "vote_weights": weights,
            "answer": answer,
            "jury_share": [0.5, 0.75, 1.0, 0.0, 0.9][i % 5],
            "amplification": [1.0, 0.5, 3.0, 2.5, 1.0, 16.0, 2.0][i % 7],
            "opening": opening,
            "await_vote": answer == "robust" and i % 4 < 2,
            "signals": tuple(Signal(name, np.zeros(1, np.float32), np.array([-0.3, 0.4])) for name in names),
        }
        | ends,
    )
    finite = rng.random(ROWS) < 0.9
    said = StageAnswers(
        classifier=log_probabilities(rng, ROWS),
        members=log_probabilities(rng, MEMBERS, ROWS),
        on_raw=log_probabilities(rng, ROWS) if purify == "suspicious" else None,
        reconstruction_error=rng.random(ROWS).astype(np.float32),
        valid=finite & (rng.random(ROWS) < 0.9),
        finite=finite,
    )
    eyes: list[Sees] = ["raw" if purify == "suspicious" and j < opening else "purified" for j in range(MEMBERS)]
    return test, said, purify, tuple(eyes)


@pytest.mark.parametrize("purify", POLICIES)
@pytest.mark.parametrize("answer", ANSWERS)
def test_graph_and_reference_agree_to_the_last_bit_in_any_batch_and_order(answer: Answer, purify: Purify) -> None:
    block = 9 * (ANSWERS.index(answer) * len(POLICIES) + POLICIES.index(purify))
    for i in range(block, block + 9):
        test, said, _, sees = made = case(answer, purify, i)
        runner, batch = session(model_of(made)), images(said, purify, sees)
        found, expected = verdicts(runner, batch), run_sequential_test(test, said)
        for name in OUTCOME:
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=f"{name}, case {i}")
        order = np.random.default_rng(i).permutation(ROWS)
        parts = np.split(order, [1, 2, 5, 16])
        again = Verdicts.concatenate([verdicts(runner, batch[part]) for part in parts])
        for name in Verdicts.FIELDS:
            whole = getattr(found, name)[order]
            np.testing.assert_array_equal(getattr(again, name), whole, err_msg=f"{name}, case {i}")


def probabilities_of_one(count: int) -> np.ndarray:
    """Log-probabilities float32 [N, 5] whose probabilities sum to 1 in float64: small classes take what is left."""
    rng = np.random.default_rng(0)
    logs = np.log(rng.uniform(0.3, 0.45, (count, 2))).astype(np.float32)
    for spared in (1e-7, 1e-12, 0.0):
        left = 1.0 - np.exp(logs.astype(np.float64)).sum(axis=1, keepdims=True)
        logs = np.hstack([logs, np.log((left - spared).clip(1e-16)).astype(np.float32)])
    return logs


@pytest.mark.parametrize("amplification", [1.0, 2.0, 4.0, 16.0])
def test_where_only_rounding_decides_a_mix_graph_and_reference_take_one_label(amplification: float) -> None:
    # Amplified, the jury says of classes 0 and 1 what the classifier says of 1 and 0: half of each is a tie.
    own = probabilities_of_one(4000)
    jury = own[:, [1, 0, 2, 3, 4]] / np.float32(amplification)  # exact, a power of two
    test = sequential_test(1, answer="mixed", jury_share=0.5, amplification=amplification, upper=np.array([math.inf]))
    said = StageAnswers(own, jury[None])
    labels = run_sequential_test(test, said).label
    assert min((labels == 0).mean(), (labels == 1).mean()) > 0.1
    runner = session(model_of((test, said, "off", ("raw",))))
    np.testing.assert_array_equal(verdicts(runner, images(said, "off", ("raw",))).label, labels)
