"""How near each decision of the twin is to falling the other way: what may explain that the file decides otherwise."""

import numpy as np
import torch

from s2ap_defend.sequential import base_vote_weight, member_scores, weighted_votes

TIE = 1e-4


def compared(twin, classifier, images):
    """(inputs on which twin and file differ in label, flag or members used; those of them without a near-tie) [N]."""
    ours, theirs = twin.verdicts(images), classifier(images)
    differ = np.zeros(len(images), dtype=bool)
    for name in ("label", "adversarial", "members_used"):
        differ |= getattr(ours, name) != getattr(theirs, name)
    used = np.maximum(ours.members_used, theirs.members_used)
    return differ, differ & (gaps(twin, images, used) >= TIE)


def gaps(twin, images, used):
    """Smallest distance of any comparison behind a verdict to its threshold [N], in nats, from the twin's values.

    Of the members that were asked alone: the classifier's top two log-probabilities, each score to a bin edge, each
    member's best other label to where it disagrees, the top two labels of a member that does, and of tied votes the
    summed log-probabilities. L is left out: twin and file add the same increments in the same order, so that L is the
    same to the last bit where the bins are.
    """
    test = twin.test
    with torch.no_grad():
        purified = twin.purify(torch.from_numpy(images))
        base = twin.classify(purified).numpy()
        answers = twin.members(purified).numpy()
    label, rows = base.argmax(1), np.arange(len(images))
    found = [top_two(base)]
    scores = member_scores(test.evidence, answers, label)
    for i in range(test.members):
        others = answers[i].copy()
        others[rows, label] = -np.inf
        ahead = others.max(1) - answers[i][rows, label]
        near = [np.abs(scores[i][:, None] - test.edges[i]).min(1), np.abs(ahead - TIE)]
        near += [np.where(ahead >= TIE, top_two(answers[i]), np.inf)]
        found.append(np.where(i < used, np.min(near, axis=0), np.inf))
    outcome = twin.verdicts(images)
    weighted = weighted_votes(outcome.votes, label, base_vote_weight(test, outcome.log_likelihood_ratio))
    asked = np.arange(test.members)[:, None] < outcome.members_used
    summed = (answers.astype(np.float64) * asked[..., None]).sum(0)
    tied = np.where(weighted == weighted.max(1, keepdims=True), summed, -np.inf)
    found.append(np.where(outcome.adversarial, top_two(tied), np.inf))
    return np.min(found, axis=0)


def top_two(values):
    """Distance of the largest from the second largest [N]."""
    second, first = np.partition(values, -2, axis=1)[:, -2:].T
    return first - second
