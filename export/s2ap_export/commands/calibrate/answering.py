"""Another answer for a file that exists: the same stages and evidence, composed anew; nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnx import ModelProto

from s2ap_defend.decision_record import DecisionDescription, Frontier, FrontierRow
from s2ap_defend.errors import RecipeError
from s2ap_defend.manifest import Manifest
from s2ap_defend.model_file import ModelFile
from s2ap_defend.sequential import Answer, Correction, SequentialTest
from s2ap_defend.stages import CLASSIFIER, PURIFIER, cut_stage, member_scope
from s2ap_export.graph.compose import compose

__all__ = ["Answering", "answered_by", "composed"]


@dataclass(frozen=True)
class Answering:
    """The decision of a file with another answer, before its boundaries are calibrated.

    Attributes:
        decision: For the manifest.
        test: The tables, the file's own evidence and boundaries.
    """

    decision: DecisionDescription
    test: SequentialTest


def answered_by(manifest: Manifest, answer: Answer | None) -> Answering:
    """The decision of a file whose answer is given by somebody else.

    The numbers of the mix are those of the best row with that answer in the file's frontier whose networks are wired
    as the file's, or the file's own. A mix keeps its answer where it is flagged, unless that row says otherwise; other
    answers give way to the jury's vote. Under 'robust' the verdict 'clean' waits for a settled vote, as nothing else
    says that a part of the jury is enough.

    Args:
        manifest: Of the file.
        answer: Who is to give the label of what is not flagged; None: who does.

    Raises:
        RecipeError: If the members that open have no vote, so that no jury could answer first.
    """
    decision, test = manifest.decision, manifest.to_test()
    if answer is None or answer == decision.answer:
        return Answering(decision, test)
    if answer != "accurate" and not test.vote_weights[: test.opening].any():
        raise RecipeError(
            f"--answer {answer} needs a juror among the {test.opening} members of the opening, and they have no vote; "
            "harden with jurors first"
        )
    update: dict[str, object] = {"answer": answer}
    row: FrontierRow | None = None
    frontier = decision.frontier
    rows = [] if frontier is None else _wired_alike(frontier, answer)
    if frontier is not None and rows:
        best = max(rows, key=lambda i: (frontier.rows[i].label_accuracy, frontier.rows[i].clean_accuracy))
        row = frontier.rows[best]
        update |= {"jury_share": row.jury_share, "amplification": row.amplification}
        reason = f"Asked for with calibrate --answer {answer}; it was: {frontier.reason}"
        update["frontier"] = frontier.model_copy(update={"chosen": best, "reason": reason})
    elif frontier is not None:
        update["frontier"] = None  # none of its rows is this file
    other = decision.model_copy(update=update)
    return Answering(
        other,
        replace(
            test,
            answer=answer,
            jury_share=other.jury_share,
            amplification=other.amplification,
            await_vote=answer == "robust",
            correction=_corrected(test.correction, answer, row),
        ),
    )


def composed(file: ModelFile, test: SequentialTest) -> ModelProto:
    """The file's stages with another test; what members see and when images are purified stays.

    Raises:
        ModelFileError: If a stage cannot be cut out.
    """
    members = file.manifest.members
    return compose(
        cut_stage(file.proto, PURIFIER),
        cut_stage(file.proto, CLASSIFIER),
        [cut_stage(file.proto, member_scope(i)) for i in range(len(members))],
        test,
        sees=[member.sees for member in members],
        purify=file.manifest.decision.purify,
    )


def _corrected(correction: Correction, answer: Answer, row: FrontierRow | None) -> Correction:
    """What flagged inputs get under an answer that is the row's; what was rejected stays so."""
    if correction == "reject":
        return correction
    if answer != "mixed":
        return "correct"
    return "keep" if row is None else row.correction


def _wired_alike(frontier: Frontier, answer: Answer) -> list[int]:
    """Rows with an answer that differ from the file in nothing else."""
    wiring = frontier.rows[frontier.chosen].wiring
    return [i for i, row in enumerate(frontier.rows) if row.answer == answer and row.wiring == wiring]
