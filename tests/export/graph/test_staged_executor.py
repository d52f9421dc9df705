"""The stages of composed files, run one by one, against the whole graph in one session."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.export.defended_files import DECISION, MEMBERS, PURIFICATION, SHAPE, TABLES, write_untrained
from tests.export.graph.spoken_images import Case, decisions, images, model_of, session, verdicts
from tests.runtime.sequential_cases import ROWS

from s2ap_defend.decision_record import Purify
from s2ap_defend.executors.few import FEW
from s2ap_defend.executors.staged import StagedExecutor
from s2ap_defend.executors.starters import CpuStages, Defence
from s2ap_defend.executors.whole import WholeExecutor
from s2ap_defend.model_file import ModelFile, open_model_file
from s2ap_defend.sequential import Answer, first_answers, member_scores
from s2ap_defend.types import Verdicts
from s2ap_train.calibration.stage_engines import StageEngines

OFF = replace(PURIFICATION, sigma=(), steps=0)
POLICIES: tuple[Purify, ...] = ("always", "suspicious", "off")


def assert_same(found: Verdicts, expected: Verdicts) -> None:
    for name in Verdicts.FIELDS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
        assert getattr(found, name).dtype == getattr(expected, name).dtype


@settings(max_examples=40, deadline=None)
@given(case=decisions(), size=st.integers(1, ROWS), threads=st.sampled_from([1, 2]), few=st.sampled_from([0, FEW]))
def test_every_decision_is_that_of_the_whole_graph_to_the_last_bit(
    case: Case, size: int, threads: int, few: int
) -> None:
    test, answers, purify, sees = case
    model, batch = model_of(case), images(answers, purify, sees)
    staged = StagedExecutor(Defence(model, test, sees, purify), on=CpuStages(threads), few=few)
    parts = [batch[i : i + size] for i in range(0, ROWS, size)]
    whole = session(model)
    assert_same(Verdicts.concatenate([staged.run(part) for part in parts]), verdicts(whole, batch))


def on_the_edge(folder: Path, answer: Answer, purify: Purify) -> tuple[ModelFile, np.ndarray]:
    """A file in which nothing is decided before all members are asked, and images whose scores are edges of bins.

    The edges are those of the stages that are cut out: if a member of the whole file rounded down where its stage does
    not, the evidence would fall into another bin.
    """
    decision = DECISION.model_copy(update={"answer": answer, "purify": purify})
    never = {"lower": (None,) * MEMBERS, "upper": (None,) * MEMBERS}
    tables, purification = TABLES.model_copy(update=never), OFF if purify == "off" else PURIFICATION
    write_untrained(folder / "any.onnx", tables, decision, purification)
    batch = np.random.default_rng(8).random((2 * MEMBERS, *SHAPE), dtype=np.float32)
    file = open_model_file(folder / "any.onnx")
    said = StageEngines.from_file(file, threads=1).ask(batch)
    said = replace(said, on_raw=None)
    scores = member_scores(tables.evidence, said.members, first_answers(file.manifest.to_test(), said))
    edges = np.sort([scores[i, 2 * i : 2 * i + 2] for i in range(MEMBERS)], axis=1)
    tables = tables.model_copy(update={"edges": tuple(map(tuple, edges.tolist()))})
    write_untrained(folder / "edges.onnx", tables, decision, purification)
    return open_model_file(folder / "edges.onnx"), batch


@pytest.mark.parametrize("purify", POLICIES)
@pytest.mark.parametrize("answer", ["robust", "mixed", "accurate"])
def test_networks_round_in_their_stages_as_they_do_in_the_whole_file(
    tmp_path: Path, answer: Answer, purify: Purify
) -> None:
    file, batch = on_the_edge(tmp_path, answer, purify)
    whole = WholeExecutor(file, device="cpu", threads=1).run(batch)
    assert (whole.members_used == MEMBERS).all()
    for threads in (1, 2):
        staged = StagedExecutor.of(file, device="cpu", threads=threads)
        for size in (1, 5, len(batch)):
            found = Verdicts.concatenate([staged.run(batch[i : i + size]) for i in range(0, len(batch), size)])
            assert_same(found, whole)
