"""Tables are never cut: not in a pipe, not on a narrow terminal."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from s2ap_defend.tables import foreign, plain_table, print_table

LONG = "a rather long cell with many words in it, which says what happened to the image and why it did"


def wide(wrapped: bool = False) -> Table:
    table = plain_table("image", "verdict", "what\nhappened", title="Verdicts [of] images")
    table.columns[2].no_wrap = not wrapped
    table.add_row(foreign("/home/somebody/photos/[red]cat.png"), "[green]clean[/green]", LONG)
    table.add_row("/home/somebody/photos/dog.png", "adversarial", "")
    return table


def printed(table: Table, **options: object) -> str:
    stream = io.StringIO()
    print_table(table, Console(file=stream, color_system=None, **options))
    return stream.getvalue()


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("width", [1, 20, 80])
def test_in_a_pipe_every_row_is_one_whole_line(width: int, wrapped: bool) -> None:
    text = printed(wide(wrapped), width=width)
    assert not any(line != line.rstrip() for line in text.splitlines())
    lines = [line.split() for line in text.splitlines()]
    assert ["/home/somebody/photos/[red]cat.png", "clean", *LONG.split()] in lines
    assert ["/home/somebody/photos/dog.png", "adversarial"] in lines


@pytest.mark.parametrize("width", [200, 80, 60, 40, 12])
@pytest.mark.parametrize("wrapped", [True, False])
def test_on_a_terminal_of_any_width_nothing_is_lost(width: int, wrapped: bool) -> None:
    text = printed(wide(wrapped), width=width, force_terminal=True)
    assert "…" not in text
    words = text.split()
    for word in ("/home/somebody/photos/[red]cat.png", "clean", "/home/somebody/photos/dog.png", "adversarial"):
        assert word in words
    assert [word for word in LONG.split() if word not in words] == []


def test_a_table_that_fits_a_terminal_when_cells_are_wrapped_stays_a_table() -> None:
    lines = printed(wide(wrapped=True), width=80, force_terminal=True).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split()[:2] == ["image", "verdict"] for line in lines)


def test_a_table_that_does_not_fit_is_printed_cell_by_cell() -> None:
    text = printed(wide(), width=40, force_terminal=True)
    assert text.startswith("Verdicts [of] images\n\nimage: /home/somebody/photos/[red]cat.png\nverdict: clean\n")
    assert f"what happened: {LONG}\n" in text
    assert text.count("what happened: ") == 1  # an empty cell is left out
