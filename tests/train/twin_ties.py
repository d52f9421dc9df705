"""How near each decision of the twin is to falling the other way: what may explain that the file decides otherwise."""

import numpy as np
import torch

from s2ap_defend.sequential import NEAR_TIE, member_scores
from s2ap_train.adaptive.plans import surrogates

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

    Of who was asked alone: the classifier's top two log-probabilities, those of what the answer is the largest of, each
    score to a bin edge, each member's best other label to where it disagrees with the first answer, and the top two of
    each juror. The vote is of whole labels and ties are broken by means that lie far apart where the jurors' top two
    do. L is left out: twin and file add the same increments in the same order, so that L is the same to the last bit
    where the bins are. A file whose purifier waits for suspicion, or that counts signals, has more comparisons.
    """
    test, rows = twin.test, np.arange(len(images))
    said, outcome = twin.stage_answers(images), twin.verdicts(images)
    label, members = outcome.first_answer, torch.from_numpy(said.members)
    answer, _ = surrogates(test)
    found = [top_two(said.classifier)]
    for asked in range(test.opening, test.members + 1):  # whoever the last was
        mix = answer.scores(torch.from_numpy(said.classifier), members[:asked]).numpy()
        found.append(np.where(asked == np.maximum(used, test.opening), top_two(mix), np.inf))
    scores = member_scores(test.evidence, said.members, label)
    for i in range(test.members):
        others = said.members[i].copy()
        others[rows, label] = -np.inf
        ahead = others.max(1) - said.members[i][rows, label]
        near = [np.abs(scores[i][:, None] - test.edges[i]).min(1), np.abs(ahead - NEAR_TIE)]
        near += [top_two(said.members[i])] if test.vote_weights[i] else []
        found.append(np.where(i < used, np.min(near, axis=0), np.inf))
    return np.min(found, axis=0)


def top_two(values):
    """Distance of the largest from the second largest [N]."""
    second, first = np.partition(values, -2, axis=1)[:, -2:].T
    return first - second
