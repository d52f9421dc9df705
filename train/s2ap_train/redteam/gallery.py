"""Which images the report shows: of the strongest attacks, some that the attacker won and some that it lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.types import Bool, Float32, Int64, Verdicts
from s2ap_train.data import ImageSet
from s2ap_train.redteam.attacks.attack import RedTeamAttack
from s2ap_train.redteam.judging import Judged
from s2ap_train.redteam.results import GalleryItem

__all__ = ["gallery_of", "gallery_of_file", "strongest", "verdict_in_words"]

LIMIT = 12
"""Images of a gallery."""


def gallery_of_file(
    path: Path, classes: Sequence[str], data: ImageSet, attacks: Mapping[str, RedTeamAttack], defended: Judged
) -> tuple[GalleryItem, ...]:
    """The gallery of a file under the attacks in the l_inf ball that mislead it most often.

    Args:
        path: The model file, which is asked for its verdicts.
        classes: Class names.
        data: Clean images and labels.
        attacks: All that ran, by name.
        defended: What they reached.
    """
    right = defended.clean.right(data.labels)
    shown = strongest(
        {
            name: int((defended.outcomes[name].success & right).sum())
            for name in defended.attacked
            if attacks[name].goal == "mislead" and attacks[name].norm == "linf"
        }
    )
    if not shown:
        return ()
    attacked = {name: defended.attacked[name].images for name in shown}
    serve = DefendedClassifier.load(path, device="cpu", threads=1)
    verdicts = {name: serve(images) for name, images in attacked.items()}
    return gallery_of(data.images, data.labels, attacked, verdicts, classes, right=right)


def gallery_of(
    images: Float32,
    labels: Int64,
    attacked: Mapping[str, Float32],
    verdicts: Mapping[str, Verdicts],
    classes: Sequence[str],
    *,
    right: Bool | None = None,
    limit: int = LIMIT,
) -> tuple[GalleryItem, ...]:
    """Choose images; the same arguments always choose the same ones.

    Attacks are taken by the number of images that they won, and of each as many won images as lost ones, as far as
    there are both. The lost ones take turns: the classifier was fooled and the answer is right, it was fooled and the
    answer is wrong but flagged or not given, it was not fooled. Images that the attack left as they were are
    no losses. No image is shown twice as long as there are others.

    Args:
        images: Clean images [N, C, H, W].
        labels: True labels [N].
        attacked: Attacked images [N, C, H, W] by attack; give those that mislead.
        verdicts: What the file answers to them.
        classes: Class names.
        right: Images that the file has right without attack [N]: only they are shown. None: all may be.
        limit: How many images, at most.
    """
    may = np.ones(len(images), dtype=bool) if right is None else right
    wins = {name: _won(verdicts[name], labels) & may for name in attacked}
    chosen = strongest({name: int(won.sum()) for name, won in wins.items()}, limit=limit)
    each = -(-limit // max(1, len(chosen)))
    shown = np.zeros(len(images), dtype=bool)
    found: list[GalleryItem] = []
    for name in chosen:
        said, won = verdicts[name], wins[name]
        changed = (attacked[name] != images).any(axis=(1, 2, 3))
        lost = may & changed & ~_won(said, labels)
        winners = _in_order(np.where(won, 0, -1), shown)
        losers = _in_order(_turns(_kind(said, labels), lost), shown)
        losers = losers[: each - min(each // 2, len(winners))]
        rows = [*winners[: each - len(losers)], *losers]
        for row in rows[: limit - len(found)]:
            shown[row] = True
            found.append(
                GalleryItem(
                    attack=name,
                    original=images[row],
                    attacked=attacked[name][row],
                    purified=said.purified[row],
                    label=classes[labels[row]],
                    verdict=verdict_in_words(said, row, labels[row], classes),
                    won=bool(won[row]),
                )
            )
    return tuple(found)


def strongest(wins: Mapping[str, int], *, limit: int = LIMIT) -> list[str]:
    """Names of the attacks that a gallery of `limit` images takes from: those that won most, the first of equals."""
    return sorted(wins, key=lambda name: -wins[name])[: max(1, limit // 4)]


def verdict_in_words(verdicts: Verdicts, row: int, label: int, classes: Sequence[str]) -> str:
    """What the file answers to one image, such as 'flagged, the jury answers 'cat' (right), 5 members asked'.

    Where the classifier alone says something else, that is said, too.

    Args:
        verdicts: Of several images.
        row: Which of them.
        label: Its true label.
        classes: Class names.
    """
    final, base = int(verdicts.label[row]), int(verdicts.base_label[row])
    said = f"{classes[final]!r} ({'right' if final == label else 'wrong'})"
    alone = "" if final == base else f", the classifier alone {classes[base]!r}"
    if verdicts.abstained[row]:
        answer = "flagged and rejected" if verdicts.adversarial[row] else "undecided, no answer"
    elif not verdicts.adversarial[row]:
        answer = f"not flagged, answers {said}{alone}"
    else:
        answer = f"flagged, the jury answers {said}{alone}"
    count = int(verdicts.members_used[row])
    return f"{answer}, {count} member{'' if count == 1 else 's'} asked"


def _won(verdicts: Verdicts, labels: Int64) -> Bool:
    return np.asarray(~verdicts.adversarial & ~verdicts.abstained & (verdicts.label != labels))


def _kind(verdicts: Verdicts, labels: Int64) -> Int64:
    """0: the classifier fooled and the answer right; 1: fooled and no right answer; 2: not fooled [N]."""
    fooled = verdicts.base_label != labels
    right = ~verdicts.abstained & (verdicts.label == labels)
    return np.where(fooled & right, 0, np.where(fooled, 1, 2))


def _turns(kind: Int64, rows: Bool) -> Int64:
    """Ranks [N] by which kinds take turns; -1 for other rows."""
    rank = np.full(len(kind), -1)
    for one in np.unique(kind):
        of_kind = np.flatnonzero(rows & (kind == one))
        rank[of_kind] = 3 * np.arange(len(of_kind)) + one
    return rank


def _in_order(rank: Int64, shown: Bool) -> list[int]:
    """Rows with a rank from 0 on: those not yet shown first, then by rank, then as they come."""
    rows = np.flatnonzero(rank >= 0)
    return [int(row) for row in rows[np.lexsort((rows, rank[rows], shown[rows]))]]
