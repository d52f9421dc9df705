"""What `compare` prints, draws and writes."""

import base64
import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tests.train.commands.compared_runs import text_of
from tests.train.planted_runs import make_run

from s2ap_defend.errors import ModelFileError
from s2ap_train.commands.compare.cli import compare
from s2ap_train.commands.compare.comparison import compare_runs
from s2ap_train.commands.compare.page import FILES, PAGE
from s2ap_train.commands.compare.report import tables
from s2ap_train.commands.compare.runs import find_runs


def test_the_tables_say_what_was_measured(six):
    text = text_of(compare_runs(find_runs([six])))
    assert "attack: pgd, eps 0.1, restarts 3, samples 100, split test, steps 20" in text
    assert "digits, small_cnn, unstructured, 80 % pruned: accuracy" in text
    assert re.search(r"hydra +3 +79\.9\+-0\.0 +90\.0\+-0\.0 +32\.0\+-2\.0 +42\.0\+-2\.0 +10\.0\+-0\.0", text)
    assert re.search(r"robust % +3 +\+3\.0 +2\.0 +\[-2\.0, \+8\.0\]", text)
    assert re.search(r"sharpness +3 +-0\.25 +0 +\[-0\.25, -0\.25\]", text)
    assert "search time: 1.10 times the baseline's" in text
    assert "a surrogate" in text


def test_a_terminal_gets_tables_and_a_pipe_whole_lines(six):
    comparison = compare_runs(find_runs([six]))
    wide = text_of(comparison, force_terminal=True, width=140)
    narrow = text_of(comparison, force_terminal=True, width=40)
    piped = text_of(comparison, width=20)
    assert "─" in wide or "━" in wide
    assert "─" not in piped
    for text in (wide, narrow, piped):
        assert "…" not in text
        assert "32.0+-2.0" in text


def test_the_command_writes_pictures_a_page_and_json(six, tmp_path):
    result = CliRunner().invoke(
        compare, [str(six), "-o", str(tmp_path / "out"), "--json", str(tmp_path / "figures.json")]
    )
    assert result.exception is None
    assert str(tmp_path / "out" / PAGE) in result.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(FILES)  # and nothing half-written
    figures = json.loads((tmp_path / "figures.json").read_bytes())
    assert figures["differences"][0]["measures"]["robust_accuracy"]["mean"] == pytest.approx(0.03)
    assert figures["groups"][1]["stability_between_seeds"]["mean"]["chance"] == pytest.approx(0.8)
    for name in FILES[:3]:
        picture = np.asarray(Image.open(tmp_path / "out" / name).convert("RGB"))
        assert picture.shape[1] > 600
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20  # bars and text, not a blank sheet


def test_the_page_needs_nothing_else_and_holds_the_pictures(six, tmp_path):
    assert CliRunner().invoke(compare, [str(six), "-o", str(tmp_path)]).exception is None
    page = (tmp_path / PAGE).read_text()
    outside = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?:|//|<script|<link|@import|url\(", outside)
    inside = [base64.b64decode(found) for found in re.findall(r"base64,([A-Za-z0-9+/=]+)", page)]
    assert inside == [(tmp_path / name).read_bytes() for name in FILES[:3]]
    assert "32.0+-2.0" in outside


def test_names_are_text_on_the_page_in_the_tables_and_in_the_pictures(tmp_path):
    name = '<img src=x onerror="alert(1)">[bold]$x_{$'
    make_run(tmp_path / "run", name, base=name)
    assert CliRunner().invoke(compare, [str(tmp_path / "run"), "-o", str(tmp_path / "out")]).exception is None
    page = (tmp_path / "out" / PAGE).read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=&#34;alert(1)&#34;&gt;[bold]$x_{$" in page
    assert name in text_of(compare_runs(find_runs([tmp_path / "run"])), force_terminal=True, width=200)


def test_the_same_runs_give_the_same_files(six, tmp_path):
    for name in ("first", "second"):
        assert CliRunner().invoke(compare, [str(six), "-o", str(tmp_path / name)]).exception is None
    for name in FILES:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_a_place_that_cannot_be_written_is_refused_before_any_work(six, tmp_path):
    (tmp_path / "taken").write_text("x")
    result = CliRunner().invoke(compare, [str(tmp_path / "no runs here"), "-o", str(tmp_path / "taken")])
    assert isinstance(result.exception, ModelFileError)
    assert "taken" in str(result.exception)


def test_drawing_does_not_touch_the_global_state_of_matplotlib(six, tmp_path):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    assert CliRunner().invoke(compare, [str(six), "-o", str(tmp_path / "out")]).exception is None
    assert dict(mpl.rcParams) == before


def test_methods_without_scores_leave_gaps_and_not_zeros(tmp_path):
    missing = dict.fromkeys(("sharpness", "hessian_eigenvalue", "flip_rate", "seconds_mask_search"))
    make_run(tmp_path / "run", "magnitude", base="magnitude", **missing, stability={})
    comparison = compare_runs(find_runs([tmp_path]))
    accuracy, sharpness = tables(comparison)
    assert accuracy.rows[0][-1] == "-"
    assert set(sharpness.rows[0][1:]) == {"-"}
    assert comparison.to_json()["groups"][0]["measures"]["sharpness"] == {"mean": None, "std": None, "values": []}
    assert CliRunner().invoke(compare, [str(tmp_path / "run"), "-o", str(tmp_path / "out")]).exception is None
