"""Defences of 4x4 images whose classifier and members are linear, so that what an attack can reach is known.

There are two classes; the margin of class 1 is bias + w . (x - 1/2). The system is the real sequential test on the
answers of these networks, and the attacker sees the networks themselves.
"""

import numpy as np
import torch

from s2ap_defend.sequential import SequentialTest, StageAnswers, run_sequential_test
from s2ap_defend.types import Verdicts
from s2ap_train.adaptive import AdaptiveBudget
from s2ap_train.adaptive.systems import judge, never_flagged
from s2ap_train.data import ImageSet
from s2ap_train.redteam.attacks.attack import Task
from s2ap_train.redteam.attacks.white_box import ATTACKS
from s2ap_train.redteam.target import Target

EPS = 0.05
BUDGET = AdaptiveBudget(steps=20, cheap_steps=20, restarts=1, targets=1, thorough=False)
FIRST = np.array([1.0] * 8 + [0.0] * 8)
SECOND = np.array([0.0] * 8 + [1.0] * 8)
REACH = EPS * 8  # how far the ball moves the margin of FIRST or SECOND
INF = np.inf


def linear(weights, bias=0.0):
    """Images [N, 1, 4, 4] -> log-probabilities [N, 2] with the margin bias + w . (x - 1/2) of class 1."""
    w = torch.as_tensor(np.asarray(weights), dtype=torch.float32)

    def log_probabilities(images):
        score = bias + (images - 0.5).flatten(1) @ w
        return torch.stack([torch.zeros_like(score), score], dim=1).log_softmax(1)

    return log_probabilities


def agreement_test(members, *, lower, upper, agree=-1.0, disagree=1.0, **changes):
    """A test that adds `agree` for every member whose label is the first answer, the classifier's unless `answer` says
    otherwise, else `disagree`; every member has a vote."""
    settings = {
        "evidence": "margin",
        "edges": np.full((members, 1), 1e-4, dtype=np.float32),
        "increments": np.array([[agree, disagree]] * members),
        "lower": np.array(lower),
        "upper": np.array(upper),
        "final_threshold": INF,
        "waves": (members,),
        "vote_weights": np.ones(members),
        "answer": "accurate",
    }
    return SequentialTest(**{**settings, **changes})


def defence(base, members, test, **changes):
    """The target of classifier, members and test; without members the classifier alone."""

    def view(images, path, count):
        asked = members[:count] if count is not None else members
        return base(images), torch.stack([one(images) for one in asked]) if asked else None

    def system(images, labels):
        with torch.no_grad():
            c, m = view(torch.from_numpy(images), "none", None)
        if test is None:
            return never_flagged(c.numpy(), labels)
        found = vars(run_sequential_test(test, StageAnswers(c.numpy(), m.numpy())))
        verdicts = Verdicts(
            **{name: value for name, value in found.items() if name != "first_answer"},
            probabilities=c.exp().numpy(),
            purified=images,
            reconstruction_error=np.zeros(len(images), dtype=np.float32),
        )
        return judge(verdicts, labels, test)

    return Target("linear", system, view, base, test=test, members=len(members), **changes)


def images_with(*margins, weights=(FIRST, SECOND)):
    """Images of class 1, one for each tuple of margins: what each of the orthogonal weights gives without its bias."""
    moves = sum(
        np.array(column)[:, None] * w / (w @ w) for column, w in zip(zip(*margins, strict=True), weights, strict=False)
    )
    images = (0.5 + moves).reshape(-1, 1, 4, 4).astype(np.float32)
    return ImageSet(images, np.ones(len(images), dtype=np.int64))


def task(data, *, eps=EPS, l2=0.1, seed=0, budget=BUDGET):
    return Task(data, eps=eps, l2=l2, pixels=1, seed=seed, budget=budget)


def run(name, target, given):
    """What the attack of that name found; in its ball whatever it is."""
    (attack,) = (one for one in ATTACKS if one.name == name)
    found = attack.run(target, given)
    change = (found.images.astype(np.float64) - given.data.images).reshape(len(given.data), -1)
    assert found.images.dtype == np.float32
    assert found.images.min() >= 0.0
    assert found.images.max() <= 1.0
    length = np.abs(change).max() if attack.norm == "linf" else np.sqrt((change**2).sum(1)).max()
    assert length <= (given.eps if attack.norm == "linf" else given.l2) + 1e-7  # two roundings of a pixel
    return found


def won(name, target, given):
    """Images that the attack of that name breaks [N]."""
    return target.system(run(name, target, given).images, given.data.labels).success
