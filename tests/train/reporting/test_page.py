import io

import pytest
from jinja2 import UndefinedError
from rich.console import Console

from s2ap_train.reporting.page import Picture, Point, TableText, html_page, print_blocks, write_report

EVIL = '"><script>alert(1)</script>[red]\x1b[2J\u202e'
TABLE = TableText("title", ("a", "b", "c"), (("x", "y", "1"), ("sum", "", "10")), ("a note",), texts=2, total=True)


def page(*blocks):
    return html_page("base.html", title="title", blocks=blocks)


def printed(*blocks, **options):
    stream = io.StringIO()
    print_blocks(blocks, Console(file=stream, **options))
    return stream.getvalue()


def test_a_table_keeps_its_first_columns_to_the_left_and_sums_up_last():
    assert TABLE.lines() == ["title", "  a    b   c", "  x    y   1", "  sum     10"]
    assert '<tr><td>x</td><td class="text">y</td><td>1</td></tr>' in page(TABLE)
    assert '<div class="scroll total">' in page(TABLE)


def test_whatever_is_shown_is_text_on_the_page_and_steers_no_terminal():
    evil = TableText(EVIL, ("a", "b"), ((EVIL, EVIL),), (EVIL,))
    blocks = (EVIL, evil, (EVIL, Point(EVIL, EVIL, EVIL)), Picture(b"", EVIL))
    text = html_page("base.html", title=EVIL, blocks=blocks)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 13  # the title twice, a caption twice, a point in three places
    for shown in (text, printed(*blocks), printed(*blocks, force_terminal=True, width=200, color_system=None)):
        assert "\x1b[2J" not in shown
        assert "\u202e" not in shown
        assert "[red]\\x1b[2J\\u202e" in shown


def test_a_value_that_a_template_lacks_is_an_error():
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        html_page("base.html", blocks=())


@pytest.mark.parametrize("width", range(10, 60, 3))
def test_a_table_is_whole_on_a_terminal_of_any_width(width):
    table = TableText("title", ("attack", "rate"), (("square attack", "12.5%"), ("PGD", "100.0%")))
    text = printed(table, force_terminal=True, width=width, color_system=None)
    assert "…" not in text
    assert {"square", "attack", "12.5%", "PGD", "100.0%"} <= {*text.split()}


def test_what_is_empty_is_not_shown():
    assert printed("", (), Picture(b"x", "caption")) == ""
    assert page("", ()) == page()


def test_paragraphs_and_points_fit_a_line_and_go_on_under_their_beginning():
    text = printed("word " * 40, ["point " * 40, Point("passed", "meaning " * 30, "passed")])
    lines = text.splitlines()
    assert lines[0] == ""
    assert max(map(len, lines)) <= 100
    assert [line[:8] for line in lines[1:]] == [
        *["word wor"] * 2,
        "- point ",
        *["  point "] * 2,
        "- passed",
        *["  meanin"] * 3,
    ]


def test_a_report_is_a_page_and_its_pictures(tmp_path):
    written = write_report(tmp_path / "new" / "page.html", "title", [TABLE, Picture(b"png", "what", "one.png")])
    assert [path.name for path in written] == ["one.png", "page.html"]
    assert sorted(written) == sorted((tmp_path / "new").iterdir())
    assert written[0].read_bytes() == b"png"
    assert 'src="data:image/png;base64,cG5n" alt="what"' in written[1].read_text()
